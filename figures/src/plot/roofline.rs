//! Picture: each kernel's share of what the device was measured to be capable of.

use std::fmt::Write;

use dsa_files::printable;

use super::panel::{
    BODY, SMALL, Swatch, TITLE, colors, digits, footer, footer_height, legend, nice_step, ticks,
};
use super::scene::{Align, Scene, text_width};
use super::{Options, Picture, cell, mixture, provenance};
use crate::row::{COST_BENCH, Peak};
use crate::{Error, Noise, Row};

const NAME: &str = "roofline";
const BAR: f64 = 58.0;
const LEFT: f64 = 600.0;
const RIGHT: f64 = 1290.0;
const TOP: f64 = 150.0;
/// Most bars of one picture: it grows by 58 rows of pixels with each.
const MOST_BARS: usize = 300;

/// One bar.
struct Bar<'a> {
    row: &'a Row,
    fraction: f64,
    by_bytes: bool,
}

/// The picture `roofline`: one bar for each row that has a measured peak and a count of its work, except
/// the rows of the cost curve.
pub(super) fn roofline(rows: &[Row], options: &Options) -> Result<Picture, Error> {
    let bars: Vec<Bar> =
        rows.iter().filter(|row| row.what().bench != COST_BENCH).filter_map(bar).collect();
    let used: Vec<&Row> = bars.iter().map(|bar| bar.row).collect();
    if bars.is_empty() {
        let expected = "rows with a measured peak and FLOP or bytes";
        return Err(Error::Nothing { picture: NAME, expected });
    }
    if bars.len() > MOST_BARS {
        let expected = "at most 300 in one picture (--device NAME and --case NAME choose)";
        return Err(Error::value("the number of rows", bars.len(), expected));
    }
    let mixed = mixture(NAME, &used, options.allow_mixed)?;
    let mut foot = provenance(&used, mixed);
    foot.insert(0, peaks(&used));
    foot.extend(Noise::of(&used, &[]).map(|noise| noise.to_string()));

    let bottom = TOP + BAR * bars.len() as f64;
    let height = bottom + 110.0 + footer_height(1600.0, &foot);
    let mut scene = Scene::new(1600, height as u32);
    let title = "Share of the measured peak, kernel by kernel";
    scene.text((30.0, 38.0), TITLE, colors::BLACK, Align::Left, title);
    let entry = |color, text: &str| (Swatch::Fill(color), text.to_string());
    let entries = [
        entry(colors::BLUE, "limited by arithmetic"),
        entry(colors::ORANGE, "limited by memory bandwidth"),
    ];
    legend(&mut scene, (30.0, 92.0), 1570.0, &entries);
    let most = bars.iter().map(|bar| bar.fraction).fold(1.0, f64::max);
    let x = |fraction: f64| LEFT + (RIGHT - LEFT) * fraction / most;
    axis(&mut scene, bottom, most, &x);
    let mut csv = String::from(
        "bench,stage,variant,case,dtype,shape,median_s,fraction_of_peak,limit,tflops,gb_per_s\n",
    );
    for (i, bar) in bars.iter().enumerate() {
        draw_bar(&mut scene, TOP + BAR * i as f64, bar, x(bar.fraction));
        csv_line(&mut csv, bar);
    }
    footer(&mut scene, bottom + 100.0, &foot);
    scene.finish(NAME, csv)
}

fn bar(row: &Row) -> Option<Bar<'_>> {
    let fraction = row.fraction_of_peak()?;
    let work = row.work();
    let peak = work.peak.as_ref()?;
    let by_bytes = work.bytes as f64 / peak.bytes_per_s > work.flop as f64 / peak.flops;
    Some(Bar { row, fraction, by_bytes })
}

/// FLOP per second in TFLOP/s, bytes per second in GB/s.
fn achieved(row: &Row) -> (f64, f64) {
    let per_second = |count: u64| count as f64 / row.timing().median_s();
    (per_second(row.work().flop) / 1e12, per_second(row.work().bytes) / 1e9)
}

fn axis(scene: &mut Scene, bottom: f64, most: f64, x: &dyn Fn(f64) -> f64) {
    let step = if most > 2.0 { nice_step(most) } else { 0.25 };
    for share in ticks(most, step) {
        scene.line(&[(x(share), TOP - 10.0), (x(share), bottom)], colors::PALE, 1);
        let label = format!("{} %", percent(share, 0));
        scene.text((x(share), bottom + 20.0), SMALL, colors::BLACK, Align::Middle, &label);
    }
    scene.line(&[(x(1.0), TOP - 10.0), (x(1.0), bottom)], colors::BLACK, 1);
    let label = "time the measured peak allows, over the median time";
    scene.text((x(most / 2.0), bottom + 48.0), SMALL, colors::BLACK, Align::Middle, label);
}

fn draw_bar(scene: &mut Scene, top: f64, bar: &Bar, end: f64) {
    let what = bar.row.what();
    let words = [&what.bench, what.stage.name(), what.variant.name(), &what.case, &what.dtype];
    let name: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let (name, sizes) = (clipped(&name.join(" "), 54), clipped(&sizes(bar.row), 66));
    scene.text((LEFT - 14.0, top + 16.0), BODY, colors::BLACK, Align::Right, &name);
    scene.text((LEFT - 14.0, top + 40.0), SMALL - 2, colors::GREY, Align::Right, &sizes);
    let color = if bar.by_bytes { colors::ORANGE } else { colors::BLUE };
    scene.rectangle((LEFT, top + 6.0), (end.max(LEFT + 1.0), top + BAR - 10.0), color, 0.9);
    let (tflops, gb_per_s) = achieved(bar.row);
    let rate = if bar.by_bytes {
        format!("{} GB/s", digits(gb_per_s))
    } else if tflops < 1.0 {
        format!("{} GFLOP/s", digits(1e3 * tflops))
    } else {
        format!("{} TFLOP/s", digits(tflops))
    };
    let text = format!("{} %, {rate}", percent(bar.fraction, 1));
    let room = 0.8 * text_width(&text, BODY);
    let (from, to) = ((end + 4.0, top + 12.0), (end + 12.0 + room, top + BAR - 16.0));
    scene.rectangle(from, to, plotters::style::WHITE, 1.0);
    scene.text((end + 10.0, top + 27.0), BODY, colors::BLACK, Align::Left, &text);
}

/// A share in percent; an absurd one as a power of ten, which has room.
fn percent(share: f64, decimals: usize) -> String {
    let percent = 100.0 * share;
    if percent < 1e6 { format!("{percent:.decimals$}") } else { format!("{percent:.1e}") }
}

/// Keeps a text inside its margin.
fn clipped(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 3).chain("...".chars()).collect()
}

fn sizes(row: &Row) -> String {
    let sizes: Vec<String> =
        row.what().shape.iter().map(|(n, size)| format!("{n} {size}")).collect();
    sizes.join(", ")
}

/// The peaks the bars refer to, one for each number type.
fn peaks(rows: &[&Row]) -> String {
    let mut said: Vec<String> = Vec::new();
    for row in rows {
        let Some(Peak { flops, bytes_per_s, how }) = &row.work().peak else { continue };
        let (tflops, gb) = (digits(flops / 1e12), digits(bytes_per_s / 1e9));
        let (dtype, how) = (printable(&row.what().dtype, 20), printable(how, 200));
        let text = format!("{dtype} {tflops} TFLOP/s and {gb} GB/s ({how})");
        if !said.contains(&text) {
            said.push(text);
        }
    }
    if said.len() > 10 {
        let more = said.split_off(10).len();
        said.push(format!("and {more} more"));
    }
    format!("Measured peaks: {}", said.join("; "))
}

fn csv_line(csv: &mut String, bar: &Bar) {
    let what = bar.row.what();
    let limit = if bar.by_bytes { "bytes" } else { "flop" };
    let (tflops, gb_per_s) = achieved(bar.row);
    let cells = [
        cell(&what.bench),
        what.stage.name().into(),
        what.variant.name().into(),
        cell(&what.case),
        cell(&what.dtype),
        cell(&sizes(bar.row)),
        bar.row.timing().median_s().to_string(),
        bar.fraction.to_string(),
        limit.into(),
        tflops.to_string(),
        gb_per_s.to_string(),
    ];
    // Writing to a String cannot fail.
    let _ = writeln!(csv, "{}", cells.join(","));
}
