//! `make run`: a filter of `contrib/filters` in a real Envoy, in front of a small upstream that
//! answers with the request as it arrived, until Ctrl-C.
//!
//! Takes the filter, the port to listen on and the port of Envoy's admin page.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;

use attache_e2e::{Config, Modules, OutBody, SeenBody, Trouble, Upstream, Version, workspace_root};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Trouble> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [filter, port, admin_port] = &arguments[..] else {
        return Err("usage: attache-run FILTER PORT ADMIN_PORT".into());
    };
    let address = free(port, "PORT")?;
    let admin = free(admin_port, "ADMIN_PORT")?;
    if address == admin {
        return Err(format!("PORT and ADMIN_PORT are both {port}: choose another for one").into());
    }
    let crate_directory = workspace_root().join("contrib/filters").join(filter);

    let package = package_name(&crate_directory.join("Cargo.toml"))?;
    let version = Version::newest();
    let modules = match version.is_compiled_in() {
        true => Modules::new(),
        false => Modules::new().package(&package),
    };
    let upstream = Upstream::start(show_request).await;
    let config = Config::example(crate_directory.join("envoy.yaml"))
        .listen(address)
        .admin(admin)
        .upstream(upstream.address());
    // Caught from here on, so that nothing is left behind.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let launch = version.launch().modules(&modules).shielded();
    let mut envoy = launch.try_start(&config).await.map_err(|refusal| refusal.to_string())?;

    println!(
        "\n{version} serves the filter `{filter}` on http://{address}, its admin page is on \
         http://{admin},\nits log is {}.\n\n\
         Try in another terminal:\n\n  \
         curl -i http://{address}/\n  \
         curl -i --data 'some text' http://{address}/some/path\n  \
         curl -s http://{admin}/stats/prometheus | grep attache\n\n\
         More in contrib/filters/{filter}/README.md. Ctrl-C ends it.",
        envoy.log_path().display()
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
        () = envoy.ended() => {}
    }
    envoy.finish().await;
    println!("\nstopped");
    Ok(())
}

/// A loopback address with this port, if it can be had. Asked for here because two Envoys would
/// share one port without a word.
fn free(port: &str, variable: &str) -> Result<SocketAddr, Trouble> {
    let number: u16 =
        port.parse().map_err(|_| format!("{variable}={port} is no port: give 1 to 65535"))?;
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).map_err(|error| {
        format!(
            "port {number} cannot be used ({error}): stop what listens there, or choose another \
             with `make run {variable}=..`"
        )
    })?;
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))
}

fn package_name(manifest: &std::path::Path) -> Result<String, Trouble> {
    let text = std::fs::read_to_string(manifest)
        .map_err(|error| format!("{}: {error}", manifest.display()))?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    Ok(name.ok_or_else(|| format!("{} names no package", manifest.display()))?.to_owned())
}

async fn show_request(request: Request<SeenBody>) -> Result<Response<OutBody>, Trouble> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut text = format!("The upstream got: {} {}\n", head.method, head.uri);
    for (name, value) in &head.headers {
        writeln!(text, "  {name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
    }
    if !body.is_empty() {
        writeln!(text, "\n{}", String::from_utf8_lossy(&body))?;
    }
    Ok(Response::builder().header("content-type", "text/plain; charset=utf-8").body(text.into())?)
}
