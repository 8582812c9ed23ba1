"""Training: the loop, what happens beside it, optimisers, averaged weights."""
