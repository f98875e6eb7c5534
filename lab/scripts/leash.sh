# Reads until the writer of standard input is gone, however it ended; then ends the processes listed in $1/pids, each a
# child of that writer, and removes $1.
cat > /dev/null
[ -f "$1/pids" ] && xargs -r kill -KILL < "$1/pids" 2> /dev/null
rm -rf "$1"
