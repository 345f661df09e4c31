//! What peers may rely on: the real h2spec, smuggling and framing at a recording application, WebSocket through a pair.
//!
//! In: our proxy's binary, h2spec where it is installed. Out: one trial per listener. Kept true: what is not installed shows as ignored,
//! with the reason. Not here: Envoy's figures beside ours (`e2e attack`).

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::ensure;
use e2e::{
    attack::{framing, h2spec, recorder, world::World},
    peers,
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let program: Option<Arc<Path>> = h2spec::program().map(Into::into);
    for (name, listener, tls) in LISTENERS {
        let missing = if program.is_some() { "" } else { " (ignored: no h2spec)" };
        let program = program.clone();
        let go = move || {
            let program = program.ok_or("h2spec is not installed")?;
            run(async |world| {
                let score = h2spec::run(&program, listener(world), tls).await?;
                ensure!((score.all, score.passed) == (145, 145), "{score:#?}");
                Ok(())
            })
        };
        let trial = Trial::test(format!("h2spec_passes_all_145_cases_{name}{missing}"), go);
        trials.push(trial.with_ignored_flag(!missing.is_empty()));
    }
    for (name, listener, tls) in LISTENERS {
        if !tls {
            let name = format!("no_case_of_smuggling_is_misread_behind_the_{name}");
            trials.push(Trial::test(name, move || run(async |world| smuggle(world, listener(world)).await)));
        }
    }
    trials
        .push(Trial::test("a_websocket_echoes_through_a_pair", || run(async |world| websocket(world).await)));
    libtest_mimic::run(&arguments, trials).exit();
}

type Listener = (&'static str, fn(&World) -> SocketAddr, bool);

const LISTENERS: [Listener; 4] = [
    ("sidecar", |world| world.crema.sidecar, false),
    ("gateway", |world| world.crema.gateway, false),
    ("sidecar_with_tls", |world| world.crema.sidecar_tls, true),
    ("gateway_with_tls", |world| world.crema.gateway_tls, true),
];

/// A proxy of its own for each trial: they run side by side.
fn run(story: impl AsyncFnOnce(&World) -> anyhow::Result<()>) -> Result<(), Failed> {
    let go = || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(async { story(&World::start(&peers::program("proxy")?, None).await?).await })
    };
    go().map_err(|error| Failed::from(format!("{error:#}")))
}

async fn smuggle(world: &World, at: SocketAddr) -> anyhow::Result<()> {
    let verdicts = framing::play(&framing::cases(), at, &world.recorder).await?;
    let wrong: Vec<String> =
        verdicts.iter().filter(|v| !v.good).map(|v| format!("{}: {}", v.case, v.text)).collect();
    ensure!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), verdicts.len(), wrong.join("\n"));
    Ok(())
}

/// Three messages there and back through two hops with TLS between them, the first right behind the request.
async fn websocket(world: &World) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(world.crema.pair).await?;
    let head = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let messages = [vec![b'a'; 5], vec![0; 125], vec![0xff; 60_000]];
    let mask = Some([1, 2, 3, 4]);
    let early = [head.as_bytes(), &recorder::framed(1, &messages[0], mask)].concat();
    stream.write_all(&early).await?;
    let mut buffer = Vec::new();
    while !buffer.windows(4).any(|window| window == b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut buffer).await? > 0, "closed before the answer's head ended");
    }
    ensure!(buffer.starts_with(b"HTTP/1.1 101 "), "{}", buffer.escape_ascii());
    let end = buffer.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_default() + 4;
    buffer.drain(..end);
    for (number, message) in messages.iter().enumerate() {
        if number > 0 {
            stream.write_all(&recorder::framed(2, message, mask)).await?;
        }
        let (_, back) = next(&mut stream, &mut buffer).await?;
        ensure!(back == *message, "message {number} came back with {} bytes", back.len());
    }
    stream.write_all(&recorder::framed(8, b"\x03\xe8", mask)).await?;
    ensure!(next(&mut stream, &mut buffer).await? == (8, b"\x03\xe8".to_vec()), "no close frame");
    ensure!(stream.read_buf(&mut buffer).await? == 0, "bytes behind the close frame");
    Ok(())
}

async fn next(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<(u8, Vec<u8>)> {
    loop {
        if let Some((kind, payload, used)) = recorder::frame(buffer) {
            buffer.drain(..used);
            return Ok((kind, payload));
        }
        ensure!(stream.read_buf(buffer).await? > 0, "closed within a message");
    }
}
