# Completes the options of foo-server in fish; written by docs/manual.py.

complete -c foo-server -f
complete -c foo-server -s h -l help -d 'Show this help message and exit.'
complete -c foo-server -l listen -x -d 'Where to listen (default: :8001).'
complete -c foo-server -l nak-rate -x -d 'Share of requests answered with NAK, 0 to 1 (default: 0).'
complete -c foo-server -l delay -x -d 'Delay each reply by this much: 5ms, 0.5s, 2 (seconds) (default: 0).'
complete -c foo-server -l seed -x -d 'Make the choice of ACK or NAK reproducible.'
complete -c foo-server -l close-after-fin -d 'Close a connection after the client\'s FIN; real servers do not.'
