//! A volume's map as a picture in the terminal: each cell some chunks, hue by site, brightness by heat.

use std::fmt::Write as _;

/// Cells of one line.
const COLUMNS: usize = 64;
/// More lines are not seen at once; then each cell stands for several chunks.
const LINES: usize = 32;
/// Without colours, a cell at least this hot (of the hottest) is a capital letter.
const HOT: f64 = 0.1;
/// Of the sites, in their order; a ninth site looks like the first.
const HUES: [[u8; 3]; 8] = [
    [40, 130, 235],
    [240, 140, 30],
    [60, 180, 75],
    [200, 70, 200],
    [230, 60, 60],
    [70, 200, 200],
    [190, 190, 60],
    [150, 150, 150],
];

/// What is known of one chunk.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Cell {
    /// Sites of its in-sync copies, as indexes, ascending.
    pub(crate) sites: Vec<usize>,
    /// Uses per second.
    pub(crate) heat: f64,
}

/// Chunks -> cells, few enough to be seen at once: a cell is as its hottest chunk, so that no hot spot is
/// lost. With the number of chunks in each.
fn cells(chunks: Vec<Cell>) -> (Vec<Cell>, usize) {
    let each = chunks.len().div_ceil(COLUMNS * LINES).max(1);
    if each == 1 {
        return (chunks, 1);
    }
    let hottest = |group: &[Cell]| {
        let hotter = |a: &&Cell, b: &&Cell| a.heat.total_cmp(&b.heat);
        // Of equals the first: a cell that is all cold is as its first chunk.
        group
            .iter()
            .rev()
            .max_by(hotter)
            .cloned()
            .unwrap_or_default()
    };
    (chunks.chunks(each).map(hottest).collect(), each)
}

/// The picture with its legend, lines ended.
#[must_use]
pub(crate) fn picture(chunks: Vec<Cell>, sites: &[String], coloured: bool) -> String {
    let (cells, each) = cells(chunks);
    let most = cells.iter().map(|cell| cell.heat).fold(0.0, f64::max);
    // Where no heat is known, nothing is dark for it, nor hot.
    let share = |cell: &Cell| {
        if most > 0.0 {
            cell.heat / most
        } else {
            HOT * 0.9
        }
    };
    let mut text = String::new();
    for line in cells.chunks(COLUMNS) {
        for cell in line {
            if coloured {
                let [left, right] = halves(cell, share(cell));
                let ([r, g, b], [r2, g2, b2]) = (left, right);
                // A String takes everything.
                let _ = write!(text, "\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m\u{258c}");
            } else {
                text.push(letter(cell, share(cell)));
            }
        }
        text.push_str(if coloured { "\x1b[0m\n" } else { "\n" });
    }
    text + &legend(sites, &cells, each, coloured)
}

/// Colours of the left and right half of a cell: of the nearest two sites, or of the one.
fn halves(cell: &Cell, share: f64) -> [[u8; 3]; 2] {
    // Heat spans orders of magnitude; the fourth root keeps the lukewarm visible.
    let light = 0.25 + 0.75 * share.powf(0.25);
    let colour = |site: Option<&usize>| {
        let hue = site.map_or([70; 3], |site| HUES[site % HUES.len()]);
        hue.map(|part| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // 0..=255 times at most 1
            let part = (f64::from(part) * light) as u8;
            part
        })
    };
    [colour(cell.sites.first()), colour(cell.sites.last())]
}

/// One letter for the site of all copies, in capitals if hot; `*` and `+` if there are several sites.
fn letter(cell: &Cell, share: f64) -> char {
    let hot = share >= HOT;
    match (cell.sites.first(), cell.sites.last()) {
        (Some(first), Some(last)) if first == last => {
            let letter = char::from(b'a' + u8::try_from(first % 26).unwrap_or(0));
            if hot {
                letter.to_ascii_uppercase()
            } else {
                letter
            }
        }
        (Some(_), Some(_)) => {
            if hot {
                '*'
            } else {
                '+'
            }
        }
        _ => '?',
    }
}

fn legend(sites: &[String], cells: &[Cell], each: usize, coloured: bool) -> String {
    let mut parts = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        if !cells.iter().any(|cell| cell.sites.contains(&index)) {
            continue;
        }
        if coloured {
            let [r, g, b] = HUES[index % HUES.len()];
            parts.push(format!("\x1b[38;2;{r};{g};{b}m\u{2588}\x1b[0m {site}"));
        } else {
            parts.push(format!(
                "{} {site}",
                char::from(b'a' + u8::try_from(index % 26).unwrap_or(0))
            ));
        }
    }
    if coloured {
        parts.push("bright is hot, halves are copies".into());
    } else {
        parts.push("+ several".into());
        parts.push("capitals and * are hot".into());
    }
    let chunks = if each == 1 {
        "a chunk".into()
    } else {
        format!("{each} chunks")
    };
    format!("each cell {chunks}; {}\n", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(sites: &[usize], heat: f64) -> Cell {
        Cell {
            sites: sites.to_vec(),
            heat,
        }
    }

    fn sites() -> Vec<String> {
        vec!["site-a".into(), "site-b".into()]
    }

    #[test]
    fn letters_tell_site_and_heat() {
        let chunks = vec![
            cell(&[0, 0], 0.0),
            cell(&[1], 10.0),
            cell(&[0, 1], 0.5),
            cell(&[0, 1], 5.0),
            cell(&[], 0.0),
        ];
        let text = picture(chunks, &sites(), false);
        assert_eq!(
            text,
            "aB+*?\neach cell a chunk; a site-a, b site-b, + several, capitals and * are hot\n"
        );
    }

    #[test]
    fn a_coloured_cell_shows_both_copies_and_dims_when_cold() {
        let text = picture(vec![cell(&[0, 1], 1.0), cell(&[1, 1], 0.0)], &sites(), true);
        assert!(text.starts_with(
            "\x1b[38;2;40;130;235;48;2;240;140;30m\u{258c}\x1b[38;2;60;35;7;48;2;60;35;7m"
        ));
    }

    #[test]
    fn a_large_volume_fits_and_keeps_its_hot_spot() {
        let mut chunks = vec![cell(&[0], 0.0); 100_000];
        chunks[77_777] = cell(&[1], 3.0);
        let text = picture(chunks, &sites(), false);
        assert!(text.lines().count() <= LINES + 1, "{text}");
        assert_eq!(text.matches('B').count(), 1, "{text}");
        assert!(text.contains("each cell 49 chunks"));
    }
}
