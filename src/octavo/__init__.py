"""octavo: an inference server whose tokens depend on nothing but the request."""
