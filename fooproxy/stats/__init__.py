"""What is counted, and what is computed from it: counters, rates, latencies, and the last 15 minutes.

It knows no sockets, no files and no HTTP; clocks are handed in.

Start with `counters`, where every statistic is declared once; `fields` is how a declaration works.  `session` counts
one session, `clients` sums sessions by address, `timetable` computes rates, `history` keeps seconds, `sampling` decides
when both look, and `reasons` lists why sessions end.
"""
