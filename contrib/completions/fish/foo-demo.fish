# Completes the options of foo-demo in fish; written by docs/manual.py.

complete -c foo-demo -f
complete -c foo-demo -s h -l help -d 'Show this help message and exit.'
complete -c foo-demo -l keep -d 'Keep everything running, with light traffic, until Ctrl-C.'
complete -c foo-demo -l requests -x -d 'Total requests (default: 20000).'
complete -c foo-demo -l connections -x -d 'Simultaneous connections (default: 10).'
complete -c foo-demo -l pipeline -x -d 'Requests in flight per connection (default: 50).'
complete -c foo-demo -l nak-rate -x -d 'Share of requests answered with NAK, 0 to 1 (default: 0.2).'
complete -c foo-demo -l listen -x -d 'Where the proxy listens (default: a free port).'
complete -c foo-demo -l http -x -d 'Where the proxy serves HTTP (default: a free port).'
