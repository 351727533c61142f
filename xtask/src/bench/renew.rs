//! What stays of a page of results when there are newer ones: whatever they do not tell themselves. All results together take
//! hours, so they are made in parts.

use std::collections::BTreeSet;

/// Where a section begins. None of the page's text but a heading has this.
const HEADING: &str = "\n## ";
/// What stands before the clock that figures were made by; those of another clock are other figures.
const CLOCK: &str = "- clock: ";

/// The page `new`, and what `old` has beyond it. Sections of a guest stay together, the newer ones first.
pub fn page(old: &str, new: &str) -> String {
    let (opening, newer) = split(new);
    let (_, older) = split(old);
    let guests: Vec<_> = older.iter().chain(&newer).map(Section::guest).collect();
    let left = older.iter().filter_map(|section| section.beyond(&newer));
    let mut sections: Vec<_> = newer.iter().cloned().chain(left).collect();
    sections.sort_by_key(|section| guests.iter().position(|guest| *guest == section.guest()));
    let sections = sections.iter().map(|it| format!("{HEADING}{}", it.text));
    opening.to_owned() + &sections.collect::<String>()
}

/// What comes before the first section, and all of them.
fn split(page: &str) -> (&str, Vec<Section>) {
    let mut parts = page.split(HEADING);
    let opening = parts.next().unwrap_or_default();
    let sections = parts.map(|text| Section { text: text.into() });
    (opening, sections.collect())
}

/// The figures of one run of the command.
#[derive(Debug, Clone)]
struct Section {
    text: String,
}

impl Section {
    /// Its heading: a kernel and a topology.
    fn guest(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    fn clock(&self) -> Option<&str> {
        self.text.lines().find(|line| line.starts_with(CLOCK))
    }

    /// The lines of its first table, which is that of the figures: a header, a rule, and rows.
    fn table(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().skip_while(|line| !line.starts_with('|'));
        lines.take_while(|line| line.starts_with('|'))
    }

    fn schedulers(&self) -> BTreeSet<&str> {
        let header = self.table().next().unwrap_or_default();
        cells(header).skip(1).collect()
    }

    fn rows(&self) -> impl Iterator<Item = &str> {
        self.table().skip(2)
    }

    /// Without what others have a row about, for all its schedulers. None if nothing is left then.
    fn beyond(&self, newer: &[Self]) -> Option<Self> {
        let tells_the_same = |other: &&Self| {
            other.guest() == self.guest()
                && other.clock() == self.clock()
                && other.schedulers().is_superset(&self.schedulers())
        };
        let rows = newer.iter().filter(tells_the_same).flat_map(Self::rows);
        let told: BTreeSet<_> = rows.map(title).collect();
        let mut left = self.clone();
        for row in self.rows().filter(|row| told.contains(title(row))) {
            left.text = left.text.replacen(&format!("{row}\n"), "", 1);
        }
        let changed = left.text != self.text;
        (!changed || left.rows().next().is_some()).then_some(left)
    }
}

fn title(row: &str) -> &str {
    cells(row).next().unwrap_or_default()
}

fn cells(line: &str) -> impl Iterator<Item = &str> {
    line.trim_matches('|').split('|').map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T8: &str = "6.12 on t8";

    fn section(guest: &str, clock: &str, schedulers: &str, rows: &str) -> String {
        format!(
            "\n## {guest}\n\n| workload | {schedulers} |\n|---|---|\n{rows}\n- clock: {clock}\n- `command`\n"
        )
    }

    #[test]
    fn what_newer_ones_tell_goes_and_the_rest_stays() {
        let kept = [
            section(T8, "virtual", "scx_rr | scx_numa", "| pipe | 1 | 2 |\n"),
            section(T8, "real", "scx_rr", "| pipe | 1 |\n"),
            section("6.12 on t32", "virtual", "scx_rr", "| pipe | 1 |\n"),
        ]
        .concat();
        let in_part = |rows| section(T8, "virtual", "scx_rr", rows);
        let old = [
            "# Old\n",
            &in_part("| pipe | old |\n| fair | old |\n"),
            &in_part("| pipe | old |\n"),
            &kept,
        ]
        .concat();
        let of_t8 = section(T8, "virtual", "scx_rr | scx_steal", "| pipe | 3 | 4 |\n");
        let of_other = section("debian on t8", "virtual", "scx_rr", "| pipe | 5 |\n");
        let new = ["# New\n", &of_other, &of_t8].concat();
        let page = page(&old, &new);
        let left = in_part("| fair | old |\n");
        assert_eq!(page, ["# New\n", &of_t8, &left, &kept, &of_other].concat());
        assert_eq!(super::page(&page, &new), page, "once more");
        assert_eq!(super::page("", &new), new, "the first");
    }
}
