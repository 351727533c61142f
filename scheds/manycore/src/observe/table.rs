//! A report as text for a terminal.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use super::hist::Percentiles;
use super::report::Report;

/// Rows of groups, locks and fairness that are printed; the JSON has them all.
const ROWS: usize = 10;

/// Renders a report, ending with a line break.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = head(&mut out, report);
    out.push_str(&latencies(report));
    let _ = waste(&mut out, report);
    let _ = moves(&mut out, report);
    let _ = fairness(&mut out, report);
    let _ = locks(&mut out, report);
    let _ = foot(&mut out, report);
    out
}

fn head(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "{} on {}: {} CPUs, {} node{}, {:.2} s{}\n",
        r.scheduler,
        r.kernel,
        r.cpus,
        r.nodes,
        if r.nodes == 1 { "" } else { "s" },
        r.seconds,
        r.wasted
            .idle_share
            .map_or_else(String::new, |i| format!(", CPUs {:.1}% idle", i * 100.0)),
    )
}

fn latencies(r: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["latency, us", "count", "mean", "p50", "p99", "p99.9", "max"]);
    let mut row = |name: &str, p: &Percentiles| {
        let numbers =
            [p.mean_us, p.p50_us, p.p99_us, p.p999_us, p.max_us].map(|us| format!("{us:.1}"));
        let mut cells = vec![name.to_owned(), p.count.to_string()];
        cells.extend(numbers);
        table.add_row(cells);
    };
    row("wakeup to run", &r.wakeup_to_run);
    row("runqueue wait", &r.runqueue_wait);
    for group in r.groups.iter().take(ROWS) {
        row(
            &format!("{}: wakeup to run", group.name),
            &group.wakeup_to_run,
        );
        row(
            &format!("{}: runqueue wait", group.name),
            &group.runqueue_wait,
        );
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text: String = table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    if r.groups.len() > ROWS {
        let _ = writeln!(
            text,
            " and {} more groups: see --json",
            r.groups.len() - ROWS
        );
    }
    text.push('\n');
    text
}

fn waste(out: &mut String, r: &Report) -> std::fmt::Result {
    let w = &r.wasted;
    let (Some(seconds), Some(share)) = (w.seconds, w.share_of_capacity) else {
        return writeln!(out, "wasted CPU time   not told, see below");
    };
    let least = if w.min_span_us > 0.0 { "at least " } else { "" };
    write!(
        out,
        "wasted CPU time   {least}{seconds:.3} s, {:.2}% of capacity",
        share * 100.0
    )?;
    if let (true, Some(across)) = (r.nodes > 1, w.across_nodes_seconds) {
        write!(
            out,
            "; {across:.3} s of it with the task on one node and the idle CPU on another"
        )?;
    }
    writeln!(out)?;
    let (Some(settled), Some(count), Some(longest)) =
        (w.settled_seconds, w.violations, w.longest_violation_ms)
    else {
        return Ok(());
    };
    writeln!(
        out,
        "  without transients under {:.0} us: {settled:.3} s in {count} violations, the longest {longest:.2} ms",
        w.transient_us
    )
}

fn moves(out: &mut String, r: &Report) -> std::fmt::Result {
    let s = &r.switches;
    writeln!(
        out,
        "context switches  {} ({:.0}/s): the task left by itself {}, was preempted {}; wakeups {}",
        s.total, s.per_second, s.voluntary, s.preempted, s.wakeups
    )?;
    let m = &r.migrations;
    writeln!(
        out,
        "migrations        {:.0}/s: SMT sibling {}, same LLC {}, same node {}, other node {}; queue moves {}",
        m.per_second, m.smt_sibling, m.same_llc, m.same_node, m.remote, m.queue_moves
    )?;
    if let Some(home) = r.home_share {
        writeln!(out, "time at home node {:.1}%", home * 100.0)?;
    }
    match &r.load_balancer {
        Some(b) => writeln!(
            out,
            "load balancer     {} {:.1} calls per CPU and second, at most {:.1} (CPU {})",
            b.function, b.calls_per_cpu_second, b.busiest_cpu_calls_per_second, b.busiest_cpu
        )?,
        None => writeln!(out, "load balancer     not available on this kernel")?,
    }
    match &r.numa {
        Some(n) => writeln!(
            out,
            "NUMA pages        {:.0}/s migrated, {:.0}/s hint faults",
            n.pages_migrated_per_second, n.hint_faults_per_second
        ),
        None => writeln!(out, "NUMA pages        not available on this kernel"),
    }
}

fn fairness(out: &mut String, r: &Report) -> std::fmt::Result {
    for g in r.fairness.equal_threads.iter().take(ROWS) {
        writeln!(
            out,
            "fairness          {} x {}: Jain {:.3}, each ran {:.0}% to {:.0}% of its runnable time",
            g.threads,
            g.command,
            g.jain,
            g.min_share * 100.0,
            g.max_share * 100.0
        )?;
    }
    for w in &r.fairness.by_weight {
        writeln!(
            out,
            "share by weight   weight {} ({} threads): {:.1}% of their CPU time, entitled to {:.1}%",
            w.weight,
            w.threads,
            w.share * 100.0,
            w.entitled * 100.0
        )?;
    }
    Ok(())
}

fn locks(out: &mut String, r: &Report) -> std::fmt::Result {
    let Some(locks) = &r.locks else { return Ok(()) };
    if locks.is_empty() {
        return writeln!(out, "contended locks   none");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "contended lock at",
        "kind",
        "waits",
        "total ms",
        "mean us",
        "max us",
    ]);
    for lock in locks.iter().take(ROWS) {
        table.add_row([
            lock.site.clone(),
            lock.kind.to_owned(),
            lock.waits.to_string(),
            format!("{:.3}", lock.total_ms),
            format!("{:.1}", lock.mean_us),
            format!("{:.1}", lock.max_us),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(out)?;
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)
}

fn foot(out: &mut String, r: &Report) -> std::fmt::Result {
    let c = &r.cost;
    write!(
        out,
        "meter             {} records, reader {:.3} s of CPU time",
        c.records, c.reader_cpu_seconds
    )?;
    if let (Some(runs), Some(ns), Some(share)) = (c.bpf_runs, c.bpf_ns_per_run, c.share_of_capacity)
    {
        write!(
            out,
            ", {runs} BPF runs of {ns:.0} ns; {:.2}% of capacity",
            share * 100.0
        )?;
    }
    writeln!(out)?;
    for warning in &r.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}
