//! Moves bodies of many megabytes, in the way that the path names: for `test/e2e/tests/bulk.rs`.

use attache::prelude::*;

/// A body that the filter makes has this many pieces, all alike.
const PIECES: usize = 1024;

/// Obeys the path.
pub(crate) struct Bulk;

impl Filter for Bulk {
    type Config = ();
    type RouteConfig = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Bulk)
    }

    async fn handle(&self, mut req: Request, next: Next) -> Result<Response> {
        let path = req.path();
        match path.as_str() {
            "/whole" => return Ok(Response::new(StatusCode::OK).with_body(piece().repeat(PIECES))),
            "/streamed" => return Ok(Response::new(StatusCode::OK).with_body(streamed())),
            "/echo" => return Ok(Response::new(StatusCode::OK).with_body(req.take_body())),
            "/mapped" => req.map_body(|chunk| inverted(&chunk)),
            "/piped" => req.pipe_body(invert),
            _ => (),
        }
        let mut resp = next.run(req).await?;
        match path.as_str() {
            "/mapped" => resp.map_body(|chunk| inverted(&chunk)),
            "/piped" => resp.pipe_body(invert),
            _ => (),
        }
        Ok(resp)
    }
}

fn piece() -> Vec<u8> {
    (0..=250).cycle().take(64 << 10).collect()
}

fn streamed() -> Body {
    let pieces = (0..PIECES).map(|_| Ok::<_, Error>(Bytes::from(piece())));
    Body::from_stream(futures_util::stream::iter(pieces))
}

fn inverted(chunk: &[u8]) -> Bytes {
    chunk.iter().map(|byte| !byte).collect()
}

async fn invert(mut input: Body, mut output: BodyWriter) -> Result<()> {
    while let Some(chunk) = input.chunk().await? {
        output.send(inverted(&chunk)).await?;
    }
    Ok(())
}
