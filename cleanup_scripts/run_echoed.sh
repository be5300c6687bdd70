# run_echoed <command> [argument ...]: prints a command as one could type it, then runs it.
# For `source`.
run_echoed() {
  local word line='$'
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:,=+@%-]+$ ]]; then line+=" $word"; else line+=" '$word'"; fi
  done
  printf '%s\n' "$line"
  "$@"
}
