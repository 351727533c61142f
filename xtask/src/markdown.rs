//! Tables of the pages that commands make.

use std::fmt::Write as _;

/// A table: what stands above each column, and each row's cells, of which there may be fewer.
pub fn table<S: AsRef<str>>(
    header: impl IntoIterator<Item = S>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let header: Vec<_> = header.into_iter().collect();
    let mut text = line(header.iter().map(AsRef::as_ref));
    let _ = writeln!(text, "|{}", "---|".repeat(header.len()));
    for row in rows {
        text += &line(row.iter().map(String::as_str));
    }
    text
}

fn line<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    let cells: Vec<_> = cells.collect();
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_row() {
        let rows = [["a", "1"], ["b", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(["case", "passed"], rows),
            "| case | passed |\n|---|---|\n| a | 1 |\n| b |  |\n"
        );
    }
}
