//! Times `matmul` with the matrices of a model of SmolLM2-135M's shape, or of one layer of Llama 3.2 1B's.
//!
//! `cargo run --release --package bpe-llama-kernels --example matmul -- 1 int4 1 1b`: threads, weight format, activation rows,
//! and, if wanted, the wider shape.

use bpe_llama_kernels::{Activations, Matrix, Weights, matmul};
use std::time::Instant;

/// Rows and columns of each matrix of a layer.
type Shapes = [(usize, usize); 4];

const SMOL_LM2: (Shapes, usize) = ([(960, 576), (576, 576), (3072, 576), (576, 1536)], 30);
const LLAMA_1B: (Shapes, usize) = ([(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)], 1);
const GROUP: usize = 64;

fn main() -> Result<(), bpe_llama_kernels::Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(1);
    let (threads, format, rows) = (number(0), arguments.get(1).map_or("int4", String::as_str), number(2));
    let (shapes, layers) = if arguments.get(3).is_some_and(|shape| shape == "1b") { LLAMA_1B } else { SMOL_LM2 };
    let widest = shapes.iter().map(|(rows, columns)| *rows.max(columns)).max().unwrap_or_default();
    let weights: usize = layers * shapes.iter().map(|(rows, columns)| rows * columns).sum::<usize>();
    let floats = vec![0.25f32; if format == "float32" { weights } else { 0 }];
    let halves = vec![0x3e80u16; if format == "bfloat16" { weights } else { 0 }];
    let bytes = vec![7i8; if format == "int8" { weights } else { 0 }];
    let scales = vec![0.5f32; widest];
    let codes = vec![0x7au8; if format == "int4" { weights / 2 } else { 0 }];
    let int4_scales = vec![[0x3f00u16, 0x3e80]; if format == "int4" { weights / GROUP } else { 0 }];

    let mut matrices = Vec::new();
    let mut start = 0;
    for (rows, columns) in shapes.iter().copied().cycle().take(layers * shapes.len()) {
        let end = start + rows * columns;
        let weights = match format {
            "float32" => Weights::F32(&floats[start..end]),
            "bfloat16" => Weights::Bf16(&halves[start..end]),
            "int8" => Weights::Int8(&bytes[start..end], &scales[..rows]),
            "int4" => Weights::Int4(&codes[start / 2..end / 2], &int4_scales[start / GROUP..end / GROUP]),
            other => {
                let message = format!("format {other}; expected float32, bfloat16, int8 or int4");
                return Err(bpe_llama_kernels::Error::InvalidArgument(message));
            }
        };
        matrices.push(Matrix::new(rows, columns, weights)?);
        start = end;
    }
    let x = vec![0.5f32; rows * widest];
    let mut out = vec![0f32; rows * widest];
    let all = time(&matrices, rows, (&x, &mut out), threads)?;
    let bytes: usize = matrices.iter().map(Matrix::bytes).sum();
    println!(
        "{format}, {rows} rows, {threads} threads: {:.2} ms, {:.1} GB/s, {:.0} GFLOP/s",
        all * 1e3,
        bytes as f64 / all / 1e9,
        (2 * weights * rows) as f64 / all / 1e9
    );
    for (shape, (outputs, inputs)) in shapes.iter().enumerate() {
        let alike: Vec<_> = matrices.iter().copied().skip(shape).step_by(shapes.len()).collect();
        let seconds = time(&alike, rows, (&x, &mut out), threads)?;
        let operations = 2 * alike.len() * outputs * inputs * rows;
        println!("  {outputs} x {inputs}: {:.2} ms, {:.0} GFLOP/s", seconds * 1e3, operations as f64 / seconds / 1e9);
    }
    Ok(())
}

/// Returns the seconds of the products with all matrices, one after the other: the sum of the best of nine runs of each. A
/// single product is shorter than a time slice of the scheduler, so other processes do not disturb its best run.
fn time(
    matrices: &[Matrix<'_>],
    rows: usize,
    (x, out): (&[f32], &mut [f32]),
    threads: usize,
) -> Result<f64, bpe_llama_kernels::Error> {
    let mut best = vec![f64::INFINITY; matrices.len()];
    for _ in 0..9 {
        for (matrix, best) in matrices.iter().zip(&mut best) {
            let out = &mut out[..rows * matrix.rows()];
            let start = Instant::now();
            matmul(&[*matrix], Activations::Plain(&x[..rows * matrix.columns()]), out, false, threads)?;
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(best.iter().sum())
}
