"""Used by all other folders: flags, exit codes, files, pools of processes, the progress line."""
