//! Prints the tiers of instructions that this CPU has, the slowest first, one a line.

fn main() {
    for tier in bpe_llama_simd::Tier::of_cpu() {
        println!("{}", tier.name());
    }
}
