"""What a user looks at: pictures of data sets and samples."""
