//! The talk on a terminal: what is applied, what is seen, what should be seen, and a table at the end.
//!
//! In: the steps of `scenarios`. Out: text and an exit code. Kept true: what is shown is what ran; a step without a verdict is a failure.
//! Not here: the steps themselves.

use std::{
    io::{IsTerminal, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    node::{Node, Options, Progress},
    peers,
    scenarios::{Audience, Row, STEPS, Seen, Shop, Source, Step, run},
};

/// How the demo is played.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DemoArgs {
    /// Play only the steps whose name contains one of these (the first always runs: the others stand on it)
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Apply the files of the shop's author instead of the project's own, where they are
    #[arg(long)]
    pub author: bool,
    /// Wait for the return key before each step
    #[arg(long)]
    pub pause: bool,
    /// Directory of the mesh; a temporary one unless given
    #[arg(long, value_name = "DIR")]
    pub dir: Option<std::path::PathBuf>,
}

/// Colours, where they can be seen.
#[derive(Debug, Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn put(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    fn bold(self, text: &str) -> String {
        self.put("1", text)
    }
    fn dim(self, text: &str) -> String {
        self.put("2", text)
    }
    fn good(self, text: &str) -> String {
        self.put("32", text)
    }
    fn bad(self, text: &str) -> String {
        self.put("31;1", text)
    }
    fn yaml(self, text: &str) -> String {
        self.put("36", text)
    }
}

/// Plays the talk; true when every step passed.
///
/// # Errors
/// When the mesh cannot be started.
pub async fn play(args: DemoArgs) -> anyhow::Result<bool> {
    let paint = Paint(std::io::stdout().is_terminal());
    let started = Instant::now();
    println!("{}", paint.bold("Crema: the Espresso Shop in a mesh, on this machine"));
    println!("{}", paint.dim("building the binaries (nothing to do when they are there)"));
    peers::build()?;
    let temporary = tempfile::Builder::new().prefix("crema-demo-").tempdir()?;
    let dir = args.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    let progress: Progress = Arc::new(move |text| println!("{}", paint.dim(&format!("  {text}"))));
    let options = Options { dir, net: None, bin: peers::bin_dir(), sampling: 100.0, progress };
    let node = Node::start(options).await?;
    let rows = match talk(&node, &args, paint).await {
        Ok(rows) => rows,
        Err(error) => {
            node.stop().await;
            return Err(error);
        }
    };
    let all = rows.iter().all(|r| r.passed) && !rows.is_empty();
    table(&rows, paint);
    let passed = rows.iter().filter(|r| r.passed).count();
    let verdict =
        format!("{passed} of {} steps passed in {:.0} s", rows.len(), started.elapsed().as_secs_f64());
    println!("\n{}", if all { paint.good(&verdict) } else { paint.bad(&verdict) });
    if !all {
        // The logs say why; keep them.
        let kept = if args.dir.is_none() { temporary.keep() } else { args.dir.unwrap_or_default() };
        println!("logs of all processes: {}", kept.join("logs").display());
    }
    node.stop().await;
    Ok(all)
}

async fn talk(node: &Node, args: &DemoArgs, paint: Paint) -> anyhow::Result<Vec<Row>> {
    let source = if args.author { Source::Author } else { Source::Own };
    let shop = Shop::open(node.clone(), source).await?;
    println!("{}", paint.dim(&format!("  {}", node.status_line())));
    for (service, port, address) in node.ports_outside() {
        println!("  {service}:{port} is http://{address}");
    }
    let wanted = |step: &Step| {
        args.only.is_empty()
            || step.id == STEPS[0].id
            || args.only.iter().any(|name| step.id.contains(name.as_str()))
    };
    let steps: Vec<_> = STEPS.iter().filter(|s| wanted(s)).collect();
    let mut rows = Vec::new();
    for (number, step) in (1..).zip(&steps) {
        if args.pause {
            wait_for_return();
        }
        let mut stage = Stage { paint, number, of: steps.len(), waiting: false };
        rows.push(run(&shop, step, &mut stage).await?);
    }
    Ok(rows)
}

fn wait_for_return() {
    print!("-- return key --");
    // Whoever closed standard input does not want to be asked.
    let _shown = std::io::stdout().flush();
    let _read = std::io::stdin().read_line(&mut String::new());
}

/// Shows one step.
struct Stage {
    paint: Paint,
    number: usize,
    of: usize,
    waiting: bool,
}

impl Audience for Stage {
    fn begins(&mut self, step: &Step, yaml: &[(String, String)]) {
        println!("\n{}", self.paint.bold(&format!("{:>2}/{}  {}", self.number, self.of, step.title)));
        for (name, text) in yaml {
            println!("       {}", self.paint.dim(name));
            for line in text.lines().filter(|l| !l.trim().is_empty()) {
                println!("       {}", self.paint.yaml(&format!("│ {line}")));
            }
        }
        println!("       expected  {}", step.expected);
    }

    fn before(&mut self, seen: &Seen) {
        let verdict = match seen.good {
            true => self.paint.bad("✗ holds already, so it would prove nothing"),
            false => self.paint.dim("not yet, as it should be"),
        };
        println!("       before    {}  {verdict}", seen.text);
    }

    fn waits(&mut self, _: &str) {
        if !std::mem::replace(&mut self.waiting, true) {
            println!("       {}", self.paint.dim("waiting for the change to arrive …"));
        }
    }

    fn ends(&mut self, row: &Row) {
        let verdict = if row.passed { self.paint.good("✓") } else { self.paint.bad("✗") };
        println!("       after     {}  {verdict} {}", row.after.text, self.paint.dim(&seconds(row.took)));
    }
}

fn seconds(time: Duration) -> String {
    format!("({:.1} s)", time.as_secs_f64())
}

/// The last screen.
fn table(rows: &[Row], paint: Paint) {
    let width = rows.iter().map(|r| r.step.title.chars().count()).max().unwrap_or_default();
    println!("\n{}", paint.bold(&format!("     {:width$}   what was seen", "step")));
    for row in rows {
        let mark = if row.passed { paint.good("✓") } else { paint.bad("✗") };
        println!("  {mark}  {:width$}   {}", row.step.title, row.after.text);
    }
}
