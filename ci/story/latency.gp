# Latency of the guest over time: before, during and after a move.
#   gnuplot -e "series='FILE'; copied='FILE'; begin=S; end=S; title='...'; target_ms=2; png='OUT'" ci/story/latency.gp
#   gnuplot -e "... columns=100; lines=26; colours=1" ci/story/latency.gp     in the terminal
# series: seconds, p50 and p99 of reads, p50 and p99 of writes (ms); copied: seconds, MiB/s. Times from the
# guest's start; begin and end are those of the move.
set datafile missing "?"
set key outside bottom center horizontal maxrows 1
set logscale y
set yrange [0.1:*]
set ylabel "latency, ms"
set xlabel "seconds"
set title title
if (exists("png")) {
	set terminal pngcairo size 1200,620 font "sans,11" noenhanced
	set output png
	set grid ytics lc rgb "#dddddd"
	set style line 1 lc rgb "#1f6fb4" lw 2
	set style line 2 lc rgb "#8fc1e8" lw 1.5
	set style line 3 lc rgb "#c8501e" lw 2
	set style line 4 lc rgb "#f0b08c" lw 1.5
	set style line 5 lc rgb "#9a9a9a" lw 1.5
	set object 1 rect from begin, graph 0 to end, graph 1 fc rgb "#f2f2e4" fs solid noborder behind
	set label 1 "move begins " at begin, graph 0.97 right tc rgb "#666666"
	set label 2 " move ends" at end, graph 0.97 left tc rgb "#666666"
	set arrow 1 from begin, graph 0 to begin, graph 1 nohead lc rgb "#888888" dt 2
	set arrow 2 from end, graph 0 to end, graph 1 nohead lc rgb "#888888" dt 2
	if (target_ms > 0) {
		set arrow 3 from graph 0, first target_ms to graph 1, first target_ms nohead lc rgb "#2a8a3a" dt 3 lw 1.5
		set label 3 sprintf(" target %g ms", target_ms) at graph 0, first target_ms offset 0,0.6 tc rgb "#2a8a3a"
	}
	set y2label "copied, MiB/s"
	set y2tics
	set ytics nomirror
	set y2range [0:*]
	plot series using 1:2 with lines ls 1 title "read p50", '' using 1:3 with lines ls 2 title "read p99", \
		'' using 1:4 with lines ls 3 title "write p50", '' using 1:5 with lines ls 4 title "write p99", \
		copied using 1:2 axes x1y2 with steps ls 5 title "copied"
} else {
	if (colours) {
		set terminal dumb size columns, lines noenhanced ansi
	} else {
		set terminal dumb size columns, lines noenhanced mono
	}
	set arrow 1 from begin, graph 0 to begin, graph 1 nohead
	set arrow 2 from end, graph 0 to end, graph 1 nohead
	set label 1 "move" at begin, graph 1.0 right offset -1,-1
	plot series using 1:2 with points pt "r" title "read p50", '' using 1:3 with points pt "R" title "read p99", \
		'' using 1:4 with points pt "w" title "write p50", '' using 1:5 with points pt "W" title "write p99"
}
