//! What is printed: what each order comes to over all cases, and then every case.

use std::thread;

use super::{CALLERS, Case, FROM, How, LOADS, Load, SETTINGS, Seen, Setting, UNTIL, run};
use crate::events::MILLISECOND;
use crate::scenario::Work;

const SEEDS: u64 = 20;

/// Student's t for 95 % of as many seeds.
const T: f64 = 2.093;

/// Of a run.
#[derive(Clone, Copy)]
struct Figures {
    /// Answers in time, in percent of what the places can do.
    goodput: f64,
    /// Of these, in milliseconds.
    p50: f64,
    p99: f64,
    /// In percent of what came.
    refused: f64,
    /// In percent of what the places can do.
    wasted: f64,
}

impl Figures {
    fn of(seen: &Seen, places: usize) -> Self {
        let percentile = |share: f64| {
            let rank = (share * seen.latencies.len() as f64).ceil() as usize;
            seen.latencies.get(rank.max(1) - 1).map_or(f64::NAN, |time| *time as f64 / MILLISECOND as f64)
        };
        let all = 0.01 * places as f64 * (UNTIL - FROM) as f64;
        Self {
            goodput: seen.latencies.len() as f64 * Work::MEAN as f64 / all,
            p50: percentile(0.5),
            p99: percentile(0.99),
            refused: 100.0 * seen.refused as f64 / seen.came as f64,
            wasted: seen.wasted as f64 / all,
        }
    }
}

/// A case, and what each seed has shown of each order.
struct Row {
    case: Case,
    figures: Vec<[Figures; How::ALL.len()]>,
}

fn measure() -> Vec<Row> {
    let mut rows = Vec::new();
    for setting in SETTINGS {
        for callers in &CALLERS {
            rows.extend(LOADS.map(|load| Row { case: Case { setting, callers, load }, figures: Vec::new() }));
        }
    }
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(threads);
    thread::scope(|scope| {
        for rows in rows.chunks_mut(share) {
            scope.spawn(|| {
                for Row { case, figures } in rows {
                    let figure = |how, seed| Figures::of(&run(case, how, seed), case.setting.places);
                    figures.extend((0..SEEDS).map(|seed| How::ALL.map(|how| figure(how, seed))));
                }
            });
        }
    });
    rows
}

/// The mean of what is said of each seed, and how far off 95 % of such means are.
fn mean(of: impl Fn(usize) -> f64) -> (f64, f64) {
    let all: Vec<f64> = (0..SEEDS as usize).map(of).collect();
    let mean = all.iter().sum::<f64>() / SEEDS as f64;
    let variance = all.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (SEEDS - 1) as f64;
    (mean, T * (variance / SEEDS as f64).sqrt())
}

fn cell((mean, off): (f64, f64), decimals: usize) -> String {
    format!("{mean:.decimals$} ± {off:.decimals$}")
}

/// The mean over cases of each seed, of what is said of a seed of an order in a case.
fn over(rows: &[&Row], of: impl Fn(&[Figures; How::ALL.len()]) -> f64) -> (f64, f64) {
    mean(|seed| rows.iter().map(|row| of(&row.figures[seed])).sum::<f64>() / rows.len() as f64)
}

fn overview(rows: &[Row]) {
    let pick = |suits: &dyn Fn(&Case) -> bool| -> Vec<&Row> {
        rows.iter().filter(|row| !row.case.setting.stops && suits(&row.case)).collect()
    };
    let is_over = |case: &Case| matches!(case.load, Load::Steady(load) if load > 100);
    let by = How::ALL.iter().position(|how| *how == How::Deadline).unwrap_or(0);
    println!(
        "Goodput from 105 to 200 %, by callers; the worst case of these; bursts; p50 and wasted work from 105 to"
    );
    println!("200 %; p99 at 80 and 95 % over that of the shortest deadline, and the worst case of these.\n");
    println!("| order | {} | worst | bursts | p50 | wasted | p99 at 80 % | p99 at 95 % | worst |", {
        CALLERS.each_ref().map(|callers| callers.name).join(" | ")
    });
    println!("|---{}|", "|--:".repeat(CALLERS.len() + 7));
    for (n, how) in How::ALL.into_iter().enumerate() {
        let all = pick(&is_over);
        let goodput = |rows: &[&Row]| over(rows, |figures| figures[n].goodput);
        let callers = CALLERS.each_ref().map(|callers| {
            let rows = pick(&|case| is_over(case) && case.callers.name == callers.name);
            cell(goodput(&rows), 1)
        });
        let worst = all.iter().map(|row| goodput(&[row]).0).fold(f64::MAX, f64::min);
        let ratio = |figures: &[Figures; How::ALL.len()]| (figures[n].p99 / figures[by].p99).ln();
        let against = |rows: &[&Row]| {
            let (mean, off) = over(rows, ratio);
            (mean.exp(), off * mean.exp())
        };
        let at = |load| pick(&move |case| case.load == Load::Steady(load));
        let worst_p99 = at(80).iter().chain(&at(95)).map(|row| against(&[row]).0).fold(0.0, f64::max);
        let (p50, off) = over(&all, |figures| figures[n].p50.ln());
        println!(
            "| {} | {} | {worst:.1} | {} | {} | {} | {} | {} | {worst_p99:.2} |",
            how.name(),
            callers.join(" | "),
            cell(goodput(&pick(&|case| case.load == Load::Bursts)), 1),
            cell((p50.exp(), off * p50.exp()), 0),
            cell(over(&all, |figures| figures[n].wasted), 1),
            cell(against(&at(80)), 2),
            cell(against(&at(95)), 2),
        );
    }
}

fn every(setting: Setting, rows: &[Row]) {
    let work = Work::ALL.iter().find(|work| work.1 == setting.work).map_or("", |work| work.0);
    let stops = if setting.stops { ", stopped when its caller leaves" } else { "" };
    println!("\n{} places, {work} work{stops}:\n", setting.places);
    println!("| callers | load | order | goodput, % | p50, ms | p99, ms | refused, % | wasted, % |");
    println!("|---|---|---|--:|--:|--:|--:|--:|");
    for row in rows.iter().filter(|row| row.case.setting == setting) {
        let load = match row.case.load {
            Load::Steady(load) => format!("{load} %"),
            Load::Bursts => "bursts".into(),
        };
        for (n, how) in How::ALL.into_iter().enumerate() {
            let of = |figure: fn(&Figures) -> f64| cell(mean(|seed| figure(&row.figures[seed][n])), 1);
            let figures = [
                of(|figures| figures.goodput),
                of(|figures| figures.p50),
                of(|figures| figures.p99),
                of(|figures| figures.refused),
                of(|figures| figures.wasted),
            ];
            println!("| {} | {load} | {} | {} |", row.case.callers.name, how.name(), figures.join(" | "));
        }
    }
}

/// Measures, and prints tables of Markdown.
pub(crate) fn print() {
    let rows = measure();
    overview(&rows);
    SETTINGS.into_iter().for_each(|setting| every(setting, &rows));
}
