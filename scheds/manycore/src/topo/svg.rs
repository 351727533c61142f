//! The machine as an SVG picture.

use std::fmt::Write;

use super::draw::{cores_per_row, notes, title};
use super::view::{LlcView, NodeView, View};

const CELL: (u32, u32) = (34, 22);
const GAP: u32 = 6;
const LINE: u32 = 18;
/// The average width of a character of the titles.
const CHAR: u32 = 8;
const WIDTH: u32 = 1400;

const STYLE: &str = "text{font:13px sans-serif;fill:#222}rect{stroke:#555}.node{fill:#eef3f8}.llc{fill:#dbe9d8}\
    .core{fill:#f7d9a8}.cpu{fill:#fff;stroke:#999}.cpu+text{text-anchor:middle;font-size:12px}";

/// A piece of the picture at the origin.
struct Tile {
    width: u32,
    height: u32,
    svg: String,
}

/// Draws it.
pub(super) fn svg(view: &View) -> String {
    let nodes = view.nodes.iter().map(node).collect();
    let all = flow(nodes, WIDTH);
    let (width, height) = (all.width + 2 * GAP, all.height + 2 * GAP);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <style>{STYLE}</style>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\" stroke=\"none\"/>\n\
         <g transform=\"translate({GAP},{GAP})\">{}</g>\n</svg>\n",
        all.svg
    )
}

fn node(node: &NodeView) -> Tile {
    let mut inner = flow(node.llcs.iter().map(llc).collect(), WIDTH - 4 * GAP);
    for note in notes(node) {
        inner.height += LINE;
        inner.width = inner.width.max(note.chars().count() as u32 * CHAR);
        text(&mut inner.svg, 0, inner.height - 5, &note);
    }
    frame("node", &title(node), inner)
}

fn llc(llc: &LlcView) -> Tile {
    let rows = llc.cores.chunks(cores_per_row(llc));
    let row = |cores: &[Vec<u32>]| {
        flow(
            cores.iter().map(|core| self::core(core)).collect(),
            u32::MAX,
        )
    };
    let inner = stack(rows.map(row).collect());
    frame("llc", &format!("LLC {}", llc.id), inner)
}

fn core(cpus: &[u32]) -> Tile {
    let cells = flow(cpus.iter().map(|&id| cpu(id)).collect(), u32::MAX);
    if cpus.len() == 1 {
        return cells;
    }
    let (width, height) = (cells.width + GAP, cells.height + GAP);
    let mut svg = rect("core", width, height);
    let _ = write!(
        svg,
        "<g transform=\"translate({0},{0})\">{1}</g>",
        GAP / 2,
        cells.svg
    );
    Tile { width, height, svg }
}

fn cpu(id: u32) -> Tile {
    let (width, height) = CELL;
    let mut svg = rect("cpu", width, height);
    text(&mut svg, width / 2, height - 7, &id.to_string());
    Tile { width, height, svg }
}

fn rect(class: &str, width: u32, height: u32) -> String {
    format!("<rect class=\"{class}\" width=\"{width}\" height=\"{height}\" rx=\"3\"/>")
}

/// All texts are made here, of letters and digits, so nothing needs escaping.
fn text(svg: &mut String, x: u32, y: u32, text: &str) {
    // Writing to a string can't fail.
    let _ = write!(svg, "<text x=\"{x}\" y=\"{y}\">{text}</text>");
}

fn frame(class: &str, title: &str, inner: Tile) -> Tile {
    let width = inner.width.max(title.chars().count() as u32 * CHAR) + 2 * GAP;
    let height = inner.height + LINE + 2 * GAP;
    let mut svg = rect(class, width, height);
    text(&mut svg, GAP, LINE - 3, title);
    let _ = write!(
        svg,
        "<g transform=\"translate({GAP},{})\">{}</g>",
        LINE + GAP,
        inner.svg
    );
    Tile { width, height, svg }
}

/// Side by side, as many as fit into a row.
fn flow(tiles: Vec<Tile>, width: u32) -> Tile {
    let mut rows: Vec<Vec<Tile>> = Vec::new();
    let mut used = 0;
    for tile in tiles {
        match rows.last_mut() {
            Some(row) if used + GAP + tile.width <= width => {
                used += GAP + tile.width;
                row.push(tile);
            }
            _ => {
                used = tile.width;
                rows.push(vec![tile]);
            }
        }
    }
    stack(rows.into_iter().map(beside).collect())
}

fn beside(tiles: Vec<Tile>) -> Tile {
    place(tiles, |at, tile| ((at, 0), at + tile.width + GAP))
}

fn stack(tiles: Vec<Tile>) -> Tile {
    place(tiles, |at, tile| ((0, at), at + tile.height + GAP))
}

/// Places tiles one after the other: `next` is given how far it is and says where the tile goes, and how far it is then.
fn place(tiles: Vec<Tile>, next: impl Fn(u32, &Tile) -> ((u32, u32), u32)) -> Tile {
    let mut all = Tile {
        width: 0,
        height: 0,
        svg: String::new(),
    };
    let mut at = 0;
    for tile in tiles {
        let ((x, y), then) = next(at, &tile);
        at = then;
        all.width = all.width.max(x + tile.width);
        all.height = all.height.max(y + tile.height);
        let _ = write!(
            all.svg,
            "<g transform=\"translate({x},{y})\">{}</g>",
            tile.svg
        );
    }
    all
}
