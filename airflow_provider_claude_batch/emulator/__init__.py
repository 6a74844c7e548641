"""The Message Batches API on localhost; imports nothing else of this package, so as not to share its mistakes."""
