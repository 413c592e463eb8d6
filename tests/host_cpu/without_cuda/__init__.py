"""CUDA, downloads and older libraries, replaced from outside; one file for each host. Only for tests."""
