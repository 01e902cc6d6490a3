"""Files of a data set: location, download, unpacking, decoding and the cache of resized images."""
