"""`python -m hrdc_hpc.pack`: any data set of encoded images into a few large shards with an index. Torch-free."""
