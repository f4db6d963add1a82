"""Synthetic datasets on disk: shards in WebDataset layout, their manifests, and the folder around them."""
