"""Used by all other folders: flags and exit codes, files that appear whole or not at all, process
pools, the progress line.
"""
