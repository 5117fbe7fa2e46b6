//! Both sides of an account agree, whatever goes wrong at whichever step; and strangers
//! cost a provider no more than its budget for them. `suanli-testnet settlement` runs the
//! same for many seeds.

use suanli_testnet::{
    settlement::Settlement,
    sim::{Fault, Step, run_fresh, run_script},
};

#[test]
fn every_fault_at_every_step_leaves_accounts_that_agree() {
    for step in Step::ALL {
        for fault in Fault::ALL {
            let mut all_paid = 0;
            for seed in 1..=2 {
                let scripted = run_script(seed, step, fault).unwrap();
                let case = format!("{}, {}, seed {seed}", step.name(), fault.name());
                assert_eq!(scripted.wrong, None, "{case}");
                assert!(scripted.struck, "{case}");
                let (owed, paid) = scripted.totals;
                assert!(owed > 0, "{case}: {:?}", scripted.totals);
                all_paid += paid;
            }
            // A provider that was restored before its first account may declare nothing.
            assert!(all_paid > 0, "{}, {}", step.name(), fault.name());
        }
    }
}

#[test]
fn fresh_clients_cost_no_more_than_the_budget_for_strangers() {
    let fresh = run_fresh(1, 80).unwrap();
    assert_eq!(fresh.wrong(), None, "{fresh:?}");
}

#[test]
fn the_command_counts_failures() {
    let settlement = Settlement {
        seeds: 1,
        seed: 3,
        clients: 0,
    };
    let mut out = Vec::new();
    assert_eq!(settlement.run(&mut out).unwrap(), 0);
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("| settlement shown back |"), "{text}");
    assert!(text.contains("48 faults struck"), "{text}");
}
