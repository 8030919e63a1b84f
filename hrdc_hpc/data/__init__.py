"""Images and their order: data sets, samplers, stateless draws, loaders."""
