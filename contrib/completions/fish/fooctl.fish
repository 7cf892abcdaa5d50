# Completes the options of fooctl in fish; written by docs/manual.py.

complete -c fooctl -f
complete -c fooctl -s h -l help -d 'Show this help message and exit.'
complete -c fooctl -l control -x -d 'The proxy\'s control socket, unix:PATH as in its option --control (default: $FOOPROXY_CONTROL).'
complete -c fooctl -l json -d 'Print the proxy\'s answer as JSON.'
complete -c fooctl -l sort -x -d 'Sort by this key of the JSON (default: age_seconds).'
complete -c fooctl -l limit -x -d 'Rows to show (default: 100).'
complete -c fooctl -l wait -d 'Wait until nothing is in flight, so that the servers can be restarted.'
complete -c fooctl -l timeout -x -d 'Longest wait, up to 3600 (default: 60).'
complete -c fooctl -n __fish_use_subcommand -a upstreams -d 'Show the Foo servers.'
complete -c fooctl -n __fish_use_subcommand -a connections -d 'Show the open sessions.'
complete -c fooctl -n __fish_use_subcommand -a clients -d 'Show totals by client address.'
complete -c fooctl -n __fish_use_subcommand -a pause -d 'Keep new clients waiting; requests in progress are answered.'
complete -c fooctl -n __fish_use_subcommand -a resume -d 'Let clients in again.'
complete -c fooctl -n __fish_use_subcommand -a drain -d 'Send no new clients to a server; its sessions continue.'
complete -c fooctl -n __fish_use_subcommand -a ready -d 'Send clients to a server again.'
complete -c fooctl -n __fish_use_subcommand -a close -d 'Close a session, once its requests are answered.'
complete -c fooctl -n __fish_use_subcommand -a stop -d 'Drain the proxy and stop it, as SIGTERM does.'
