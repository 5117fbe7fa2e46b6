//! Examples' figures are the true ones: computed independently, on the CPU.

use std::{fs, ops::Range, path::Path};

use crate::network::{CLIENT, Network, root, said};

const PIXELS: usize = 784;
/// Test images that are checked; each takes 60,000 distances.
const CHECKED: usize = 100;

#[test]
fn live_fashion_mnist_accuracy_matches_the_cpu() {
    let data = root().join("examples/fashion-mnist/data");
    let Ok(trains) = fs::read(data.join("train-images-idx3-ubyte")) else {
        eprintln!("SKIPPED: the data set is not there; scripts/setup unpacks it");
        return;
    };
    let labels = fs::read(data.join("train-labels-idx1-ubyte")).unwrap();
    let tests = fs::read(data.join("t10k-images-idx3-ubyte")).unwrap();
    // IDX files begin with 16 bytes before images, 8 before labels.
    let (trains, labels) = (&trains[16..], &labels[8..]);
    let expected: Vec<u32> = tests[16..]
        .chunks_exact(PIXELS)
        .take(CHECKED)
        .map(|image| u32::from(labels[nearest(image, trains)]))
        .collect();

    let network = Network::start(&["provider"]);
    let file = root().join("examples/fashion-mnist/job.toml");
    let out = network.dir.path().to_str().unwrap();
    let arguments = ["run", file.to_str().unwrap(), "-y", "--out", out];
    let words = said(&network.suanli(CLIENT, &arguments), 0);
    assert!(words.contains("accuracy"), "{words}");
    let written = fs::read(network.dir.path().join("labels.u32")).unwrap();
    let found: Vec<u32> = written
        .chunks_exact(4)
        .take(CHECKED)
        .map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn live_healthcare_models_are_as_good_as_reported() {
    let example = root().join("examples/healthcare");
    let rows = floats(&example.join("data/rows.f32"));
    let network = Network::start(&["one", "two"]);
    let file = example.join("job.toml");
    let out = network.dir.path().to_str().unwrap();
    let arguments = ["run", file.to_str().unwrap(), "-y", "--out", out];
    said(&network.suanli(CLIENT, &arguments), 0);
    for unit in 0..100 {
        let model = floats(&network.dir.path().join(format!("model-{unit}.f32")));
        // A count, as a float: it is exact.
        let right = |part: Range<usize>| -> f32 {
            let rows = rows.chunks_exact(COLUMNS).take(part.end).skip(part.start);
            rows.filter(|row| is_right(row, &model)).map(|_| 1.0).sum()
        };
        let (validation, test) = (right(342..456), right(456..569));
        assert_eq!((model[31], model[33]), (validation, test), "unit {unit}");
        // Seven in eight are right even by the worst configuration.
        assert!(validation >= 100.0, "unit {unit}: {validation} of 114");
    }
}

/// Columns of a row: features, a one, and the truth.
const COLUMNS: usize = 32;

fn is_right(row: &[f32], model: &[f32]) -> bool {
    let products = row[..COLUMNS - 1].iter().zip(model);
    let score: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    (score > 0.0) == (row[COLUMNS - 1] > 0.5)
}

fn floats(file: &Path) -> Vec<f32> {
    let bytes = fs::read(file).unwrap();
    let words = bytes.chunks_exact(4);
    words
        .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

/// The image with the least sum of squared differences; of equals, the first.
fn nearest(image: &[u8], trains: &[u8]) -> usize {
    let distance = |train: &[u8]| -> u32 {
        let pairs = image.iter().zip(train);
        pairs.map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
    };
    let distances = trains.chunks_exact(PIXELS).map(distance).enumerate();
    let least = distances.min_by_key(|(position, distance)| (*distance, *position));
    least.unwrap().0
}
