//! `suanli bench`: measures this machine, for its offers and for its operator.

use std::path::Path;

use clap::Args;
use suanli_executor::{
    AdapterSelection, Executor, ExecutorConfig, limits::EVENTS_MAX, machine::Machine,
};
use tokio::sync::mpsc;

use super::{
    context::Context,
    exit::{Exit, Failure},
    screen::{Table, bytes, list, print_aside, speed},
};
use crate::{
    client::Client,
    config::Config,
    data_dir::DataDir,
    measured::{AdapterSpeeds, Measured},
};

/// Measures this machine's adapters, processor and disk
///
/// Each adapter: FP32 and FP16 arithmetic, a matrix product as capacity challenges ask
/// for it, its memory, and the way to it and back. What is found is kept, with date and
/// driver, and offered by the next `suanli node` with this data directory.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Prints what was measured before, and measures nothing
    #[arg(long)]
    show: bool,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.load(Vec::new())?.config;
        let dir = DataDir::of(&config);
        if self.show {
            let kept = Measured::read(dir.root());
            context.answer(&kept, table);
            return Ok(());
        }
        if Client::find(&dir).is_ok() {
            print_aside(
                "a node runs on this data directory: what its jobs take is missing in these figures, and it offers them after its next start\n",
            );
        }
        dir.create()?;
        let measured = measure(&config, dir.root()).await?;
        measured
            .write(dir.root())
            .map_err(|error| unusable(dir.root(), &error))?;
        context.answer(&measured, table);
        Ok(())
    }
}

fn unusable(dir: &Path, error: &std::io::Error) -> Failure {
    let dir = dir.display();
    let message = format!("{dir} can't be written to: {error}; check its owner and free space");
    Failure::new(Exit::Unusable, message)
}

async fn measure(config: &Config, dir: &Path) -> Result<Measured, Failure> {
    let failed = |error: String| Failure::new(Exit::Unusable, error);
    let machine = Machine::look(config.worker.as_deref()).await;
    let machine = machine.map_err(|error| failed(error.to_string()))?;
    let mut measured = Measured {
        adapters: Vec::new(),
        ..Measured::read(dir)
    };
    let scratch = dir.join("bench");
    for adapter in machine.adapters() {
        print_aside(&format!("measuring {} …\n", &*adapter.name));
        let own = ExecutorConfig {
            pool_size: 1,
            adapter: AdapterSelection::At(adapter.index),
            ..ExecutorConfig::default()
        };
        let (events_in, mut events) = mpsc::channel(EVENTS_MAX);
        let started = Executor::start_on(&machine, &own, events_in);
        let executor = started.map_err(|error| failed(error.to_string()))?;
        measured
            .measure_adapter(adapter, &executor, &mut events, &scratch)
            .await;
        executor.stop().await;
    }
    print_aside("measuring the processor …\n");
    let processor = measured.measure_processor(machine.program()).await;
    processor.map_err(|error| failed(error.to_string()))?;
    // Empty: each product was removed when it had been checked.
    let _ = std::fs::remove_dir(&scratch);
    measured
        .measure_disk(dir)
        .map_err(|error| unusable(dir, &error))?;
    Ok(measured)
}

fn table(measured: &Measured) -> String {
    let mut text = String::new();
    if measured.adapters.is_empty() {
        text.push_str("no adapter was measured; `suanli doctor` says what is missing\n");
    } else {
        let mut table = Table::new(&[
            "adapter", ">fp32", ">fp16", ">product", ">memory", ">to it", ">from it",
        ]);
        for adapter in &measured.adapters {
            table.row(row(adapter));
        }
        text.push_str(&table.render(0));
    }
    let mut rows = Vec::new();
    for adapter in &measured.adapters {
        if let Some(trouble) = &adapter.trouble {
            rows.push(("not all    ", format!("{}: {trouble}", adapter.name)));
        }
    }
    if let Some(processor) = &measured.processor {
        let fuel = processor.fuel / 1_000_000;
        let cores = processor.cores;
        rows.push((
            "processor  ",
            format!("{fuel} million fuel/s in one WebAssembly program; {cores} at once"),
        ));
    }
    if let Some(disk) = &measured.disk {
        let (written, syncs) = (bytes(disk.written), disk.syncs);
        rows.push((
            "disk       ",
            format!("{written}/s written, {syncs} synced writes/s"),
        ));
    }
    rows.push((
        "network    ",
        "measured by real transfers, while a node runs".to_owned(),
    ));
    text.push_str(&list(&rows));
    text
}

fn row(adapter: &AdapterSpeeds) -> [String; 7] {
    let moved = |per_second| match per_second {
        0 => "-".to_owned(),
        per_second => format!("{}/s", bytes(per_second)),
    };
    let computed = |per_second| match per_second {
        0 => "-".to_owned(),
        per_second => speed(per_second),
    };
    [
        adapter.name.clone(),
        computed(adapter.fp32),
        computed(adapter.fp16),
        computed(adapter.matmul),
        moved(adapter.memory),
        moved(adapter.upload),
        moved(adapter.download),
    ]
}
