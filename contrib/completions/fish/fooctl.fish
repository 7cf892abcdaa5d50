# Completes the options of fooctl in fish; written by docs/manual.py.

complete -c fooctl -f
complete -c fooctl -s h -l help -d 'Show this help message and exit.'
complete -c fooctl -l control -x -d 'The control socket, as the proxy\'s --control has it: unix:PATH (default: $FOOPROXY_CONTROL).'
complete -c fooctl -l json -d 'Print the proxy\'s answer as JSON.'
complete -c fooctl -l sort -x -d 'Sort by this key of the JSON (default: age_seconds).'
complete -c fooctl -l limit -x -d 'Rows to show (default: 100).'
complete -c fooctl -l wait -d 'Wait until nothing is in flight, the moment to restart a server.'
complete -c fooctl -l timeout -x -d 'Longest wait, up to 3600 (default: 60).'
complete -c fooctl -n __fish_use_subcommand -a upstreams -d 'Show the Foo servers.'
complete -c fooctl -n __fish_use_subcommand -a connections -d 'Show the open sessions.'
complete -c fooctl -n __fish_use_subcommand -a clients -d 'Show totals by client address.'
complete -c fooctl -n __fish_use_subcommand -a pause -d 'Keep new clients waiting, and answer what is under way.'
complete -c fooctl -n __fish_use_subcommand -a resume -d 'Let them in again.'
complete -c fooctl -n __fish_use_subcommand -a drain -d 'Give a server no new clients; its sessions go on.'
complete -c fooctl -n __fish_use_subcommand -a ready -d 'Give a server clients again.'
complete -c fooctl -n __fish_use_subcommand -a close -d 'Close a session, once its requests are answered.'
complete -c fooctl -n __fish_use_subcommand -a stop -d 'Drain the proxy and stop it, as SIGTERM does.'
