"""The data contract: an example's seven features, TFRecord files and their indexes, written and
read.
"""
