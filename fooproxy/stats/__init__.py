"""Statistics: counters, rates, latencies, and the history of the last 15 minutes.

This room does not know about sockets, files or HTTP; clocks are passed in.

Start with `counters`, where every statistic is declared once; `fields` is how a declaration works.  `session` counts
one session, `clients` adds up sessions by address, `timetable` computes rates, `history` keeps a row per second,
`sampling` drives those two, and `reasons` lists why sessions end.
"""
