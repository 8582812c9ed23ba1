"""Reports as single HTML pages that need no network: of a run, and of a comparison."""
