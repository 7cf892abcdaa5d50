# Completes the options of foo-client in fish; written by docs/manual.py.

complete -c foo-client -f
complete -c foo-client -s h -l help -d 'Show this help message and exit.'
complete -c foo-client -l connect -x -d 'Server or proxy to connect to (default: localhost:8002).'
complete -c foo-client -l requests -x -d 'Total requests (default: 10, or one per connection if that is more).'
complete -c foo-client -l connections -x -d 'Simultaneous connections (default: 1).'
complete -c foo-client -l pipeline -x -d 'Requests in flight per connection (default: 1).'
complete -c foo-client -l size -x -d 'Bytes of data per request (default: 16).'
complete -c foo-client -l fragment -d 'Send each request in up to three packets.'
complete -c foo-client -l pause -x -d 'Wait this long between a reply and the next request: 5ms, 0.5s, 2 (seconds) (default: 0).'
complete -c foo-client -l timeout -x -d 'Longest wait for a reply (default: 10s).'
complete -c foo-client -l seed -x -d 'Make the data reproducible.'
