//! `suanli budget`: what principals may spend, and have spent.

use super::{
    context::Context,
    exit::Failure,
    screen::{Table, visible},
};
use crate::api::types::BudgetInfo;

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    let budgets: Vec<BudgetInfo> = context.client()?.get("/v1/budgets").await?;
    context.answer(&budgets, |budgets| table(budgets));
    Ok(())
}

fn table(budgets: &[BudgetInfo]) -> String {
    if budgets.is_empty() {
        return "nobody has a budget, and nothing was spent; `budget` in the configuration \
                limits what a principal may spend\n"
            .to_owned();
    }
    let mut table = Table::new(&["for", ">budget", ">days", ">spent", ">reserved", ">left"]);
    for of in budgets {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.row([
            visible(&of.principal),
            or_dash(of.budget.map(|budget| budget.to_string())),
            of.days.to_string(),
            of.spent.to_string(),
            of.reserved.to_string(),
            or_dash(of.left.map(|left| left.to_string())),
        ]);
    }
    table.render(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_what_left_is_a_table() {
        let of = |principal: &str, budget: Option<&str>| BudgetInfo {
            principal: principal.to_owned(),
            budget: budget.map(|amount| amount.parse().unwrap()),
            days: 30,
            spent: "1.5".parse().unwrap(),
            reserved: "0.25".parse().unwrap(),
            left: budget.map(|_| "8.25".parse().unwrap()),
        };
        let text = table(&[of("research", Some("10")), of("default", None)]);
        insta::assert_snapshot!(text, @r"
        FOR       BUDGET  DAYS  SPENT  RESERVED  LEFT
        research   10.00    30   1.50      0.25  8.25
        default        -    30   1.50      0.25     -
        ");
        assert!(table(&[]).contains("`budget` in the configuration"));
    }
}
