//! Each program of the list run by the test of its name, to end as the list says.

use std::time::Instant;

use suanli_executor::ExecutorConfig;

use crate::{
    listed::listed,
    support::{bench, noop},
};

async fn ends_as_listed(name: &str) {
    let case = listed().into_iter().find(|case| case.name == name).unwrap();
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let began = Instant::now();
    let (failure, detail) = case.run(&mut bench, 1).await.unwrap_err();
    println!(
        "{}: {failure} in {:?}, by {}: {}",
        case.attack,
        began.elapsed(),
        case.layer,
        detail.lines().next().unwrap_or_default(),
    );
    assert!(case.is_as_listed(&failure, &detail), "{failure}: {detail}");
    assert_eq!(bench.run_graph(2, &noop()).await.words(), [7]);
}

macro_rules! cases {
    ($($name:ident,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                ends_as_listed(stringify!($name)).await;
            }
        )*

        #[test]
        fn the_list_and_its_tests_are_the_same() {
            let names = listed().into_iter().map(|case| case.name);
            assert_eq!(names.collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}

cases! {
    abuse_31_a_module_that_never_ends,
    abuse_34_a_module_that_asks_for_sockets,
    abuse_38_a_loop_without_end_over_all_workgroups,
    abuse_38_an_array_of_four_megabytes_in_a_function,
    abuse_38_brackets_in_one_another,
    abuse_38_signs_in_front_of_one_another,
    abuse_38_indices_of_indices,
    abuse_38_types_of_types,
    abuse_38_conditions_without_end,
    abuse_38_blocks_in_one_another,
    abuse_38_functions_without_number,
    abuse_38_a_body_without_end,
    abuse_38_words_without_number,
    abuse_38_a_function_that_calls_itself,
    abuse_41_sixty_four_gigabytes_of_private_memory,
    abuse_41_sixty_four_gigabytes_of_workgroup_memory,
    a_shader_in_another_language,
    a_shader_in_binary,
    a_shader_of_junk,
    a_shader_of_junk_that_is_text,
    a_shader_of_nothing,
    a_shader_without_an_entry,
    a_shader_for_another_stage,
    a_shader_that_binds_a_texture,
    a_shader_that_traces_rays,
    a_shader_with_wide_integers,
    an_output_that_is_larger_than_its_job_says,
}
