# Where the chunks of a volume are, before and after a move: hue by site, brightness by heat.
#   gnuplot -e "before='FILE'; after='FILE'; volume='NAME'; png='OUT'" ci/story/map.gp
# Files: column, row, red, green, blue of every point; a chunk is a square of two halves, one for each copy.
set terminal pngcairo size 1200,660 font "sans,11" noenhanced
set output png
set multiplot layout 1,2 title "volume ".volume.": each square a chunk, its halves the two copies; blue site-a, orange site-b; bright is hot"
set yrange [*:*] reverse
unset xtics
unset ytics
unset key
set size ratio -1
unset border
set title "before"
plot before using 1:2:3:4:5 with rgbimage
set title "after"
plot after using 1:2:3:4:5 with rgbimage
unset multiplot
