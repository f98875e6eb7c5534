#!/bin/sh
# An OCI runtime for machines that cannot grant every capability: takes those in $drop out of what runc is asked for,
# then is runc. It only removes privileges. `drop` (a JSON list) and `runc` are set above this text when it is installed.
set -eu
verb='' bundle=. process='' previous=''
for word in "$@"; do
  case "$previous" in
    --bundle | -b) bundle=$word ;;
    --process | -p) process=$word ;;
  esac
  case "$word" in
    --bundle=*) bundle=${word#*=} ;;
    --process=*) process=${word#*=} ;;
    create | run | exec) verb=${verb:-$word} ;;
  esac
  previous=$word
done
case "$verb" in
  create | run) file=$bundle/config.json at=.process ;;
  exec) file=$process at=. ;;
  *) file='' at=. ;;
esac
if [ -n "$file" ] && [ -f "$file" ]; then
  lowered=$(jq -c --argjson drop "$drop" "($at | .capabilities // {}) |= map_values((. // []) - \$drop)" "$file")
  printf '%s\n' "$lowered" > "$file"
fi
exec "$runc" "$@"
