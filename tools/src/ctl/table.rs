//! A table as etcdctl draws it: box characters, headers in capitals and centred, cells to the right.

/// The table as text, lines ended.
pub(crate) fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|cell| cell.to_uppercase()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain(header.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let rule = |left: &str, middle: &str, right: &str| {
        let bars: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", bars.join(middle))
    };
    let line = |cells: Vec<String>| format!("│ {} │\n", cells.join(" │ "));
    let mut out = rule("┌", "┬", "┐");
    out += &line(header.iter().zip(&widths).map(|(cell, width)| format!("{cell:^width$}")).collect());
    out += &rule("├", "┼", "┤");
    for row in rows {
        out += &line(row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect());
    }
    out + &rule("└", "┴", "┘")
}

/// A count of bytes in etcdctl's words: powers of 1000, one decimal below 10.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut scale = 1_u64;
    while bytes / scale >= 1000 && unit + 1 < UNITS.len() {
        scale = scale.saturating_mul(1000);
        unit += 1;
    }
    let value = (bytes as f64 / scale as f64 * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_drawn_as_etcdctl_draws_it() {
        let rows = [vec!["127.0.0.1:2379".to_owned(), "20 kB".to_owned()]];
        let expected = "\
┌────────────────┬─────────┐
│    ENDPOINT    │ DB SIZE │
├────────────────┼─────────┤
│ 127.0.0.1:2379 │   20 kB │
└────────────────┴─────────┘
";
        assert_eq!(render(&["endpoint", "db size"], &rows), expected);
    }

    #[test]
    fn sizes_are_in_powers_of_a_thousand() {
        let cases =
            [(0, "0 B"), (999, "999 B"), (20_480, "20 kB"), (1_100, "1.1 kB"), (2_147_483_648, "2.1 GB")];
        for (bytes, text) in cases {
            assert_eq!(bytes_text(bytes), text);
        }
        assert_eq!(bytes_text(u64::MAX), "18 EB");
    }
}
