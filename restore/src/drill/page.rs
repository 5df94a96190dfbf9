//! The report as one web page that needs nothing else: no script, no font, no picture from elsewhere.

use std::fmt::Write;

use pgark_command::{format_size, format_time, printable};

use super::checks::{Check, CheckResult};
use super::report::{DrillReport, duration};

const STYLE: &str = include_str!("page.css");

pub(crate) fn page(report: &DrillReport) -> String {
    let mut page = String::new();
    // Writing to a text cannot fail.
    match write_page(&mut page, report) {
        Ok(()) | Err(std::fmt::Error) => page,
    }
}

fn write_page(page: &mut String, report: &DrillReport) -> std::fmt::Result {
    let (class, verdict) = if report.passed { ("passed", "Passed") } else { ("failed", "Failed") };
    let cluster = escaped(&report.cluster);
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Drill of {cluster}: {verdict}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<p class=\"kind\">Restore drill</p>\n<h1>{cluster}</h1>\n<p class=\"verdict {class}\">{verdict}</p>\n\
         </header>\n"
    )?;
    if let Some(failure) = &report.failure {
        let (stage, reason) = (failure.stage, escaped(&failure.reason));
        writeln!(page, "<p class=\"reason\"><strong>At {stage}:</strong> {reason}</p>")?;
    }
    write_facts(page, report)?;
    write_stages(page, report)?;
    write_checks(page, &report.checks)?;
    if !report.notes.is_empty() {
        page.push_str("<section>\n<h2>Notes</h2>\n<ul>\n");
        report.notes.iter().try_for_each(|note| writeln!(page, "<li>{}</li>", escaped(note)))?;
        page.push_str("</ul>\n</section>\n");
    }
    let version = env!("CARGO_PKG_VERSION");
    writeln!(page, "<footer>pgark {version} on {}</footer>\n</main>\n</body>\n</html>", escaped(&report.host))
}

fn write_facts(page: &mut String, report: &DrillReport) -> std::fmt::Result {
    let chosen = if report.is_random { " (chosen at random)" } else { "" };
    let facts = [
        ("Date", Some(format_time(report.started))),
        ("Target", Some(format!("{}{chosen}", report.target))),
        ("Backup", report.backup.as_ref().map(ToString::to_string)),
        ("Repository", Some(report.repository.clone())),
        ("System", report.system_identifier.map(|id| id.to_string())),
        ("Timeline", report.timeline.map(|timeline| timeline.to_string())),
        ("Server", report.server_version.as_ref().map(|version| format!("PostgreSQL {version}"))),
        (
            "Restored",
            (report.restored_files > 0)
                .then(|| format!("{} files, {}", report.restored_files, format_size(report.restored_bytes))),
        ),
        ("Kept", report.kept.as_ref().map(|path| path.display().to_string())),
        ("Proof", report.proof.as_ref().and_then(|key| key.rsplit('/').next()).map(str::to_owned)),
    ];
    page.push_str("<section>\n<dl>\n");
    for (name, value) in facts {
        if let Some(value) = value {
            writeln!(page, "<div><dt>{name}</dt><dd>{}</dd></div>", escaped(&value))?;
        }
    }
    page.push_str("</dl>\n</section>\n");
    Ok(())
}

/// A bar, on which each stage has its share of the time, and the figures below it.
fn write_stages(page: &mut String, report: &DrillReport) -> std::fmt::Result {
    let stages = report.stages();
    let total = report.seconds.total.max(f64::MIN_POSITIVE);
    writeln!(page, "<section>\n<h2>Time</h2>\n<div class=\"bar\" aria-hidden=\"true\">")?;
    for (index, (_, seconds, _)) in stages.iter().enumerate() {
        let share = (seconds / total * 100.0).clamp(0.0, 100.0);
        writeln!(page, "<span class=\"stage{index}\" style=\"width:{share:.2}%\"></span>")?;
    }
    page.push_str("</div>\n<table>\n<tbody>\n");
    for (index, (name, seconds, detail)) in stages.iter().enumerate() {
        writeln!(
            page,
            "<tr><td><i class=\"stage{index}\"></i>{}</td><td class=\"number\">{}</td><td>{}</td></tr>",
            capital(name),
            duration(*seconds),
            escaped(detail)
        )?;
    }
    writeln!(
        page,
        "</tbody>\n<tfoot><tr><td>Total</td><td class=\"number\">{}</td><td></td></tr></tfoot>\n</table>\n</section>",
        duration(report.seconds.total)
    )
}

fn write_checks(page: &mut String, checks: &[Check]) -> std::fmt::Result {
    if checks.is_empty() {
        return Ok(());
    }
    page.push_str("<section>\n<h2>Checks</h2>\n<table>\n<tbody>\n");
    for check in checks {
        let took = if check.result == CheckResult::Skipped { String::new() } else { duration(check.seconds) };
        write!(
            page,
            "<tr><td>{}</td><td><span class=\"{result}\">{result}</span></td><td class=\"number\">{took}</td><td>{}",
            capital(check.name),
            escaped(&check.detail),
            result = check.result.as_str(),
        )?;
        if !check.faults.is_empty() {
            page.push_str("<ul class=\"faults\">");
            check.faults.iter().try_for_each(|fault| write!(page, "<li>{}</li>", escaped(fault)))?;
            let unlisted = check.fault_count.saturating_sub(check.faults.len() as u64);
            if unlisted > 0 {
                write!(page, "<li>and {unlisted} more</li>")?;
            }
            page.push_str("</ul>");
        }
        page.push_str("</td></tr>\n");
    }
    page.push_str("</tbody>\n</table>\n</section>\n");
    Ok(())
}

fn capital(word: &str) -> String {
    let mut characters = word.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Names and messages come from servers: none of them may be markup.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '&' => shown.push_str("&amp;"),
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '"' => shown.push_str("&quot;"),
            '\'' => shown.push_str("&#39;"),
            other => shown.push(other),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_markup() {
        assert_eq!(escaped("<b title='x'>&\u{1b}"), "&lt;b title=&#39;x&#39;&gt;&amp;\\u{1b}");
        assert_eq!((capital("clean up").as_str(), capital("").as_str()), ("Clean up", ""));
    }
}
