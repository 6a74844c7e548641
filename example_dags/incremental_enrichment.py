"""For a shop whose catalogue changes a little each day, and whose products all need attributes and a teaser."""

import random
from typing import Any, Literal

import pendulum
from airflow.sdk import BaseHook, dag, task
from pydantic import BaseModel

from airflow_provider_claude_batch import claude_batch

KINDS = ["rain jacket", "désk lamp 40 W", "bicycle light", '12" frying pan', "kids' sandals", "travel mug {{ size }}"]
TRAITS = ["recycled", "waterproof – IP67", "made in Łódź", "<b>new</b>", "5–7 kg", "limited; 100 pieces", "手作り"]
FIRST_DAY = pendulum.date(2026, 1, 1)
DEFAULTS = {"model": "claude-haiku-4-5", "max_tokens": 800, "system": "You describe products for an online shop."}
TABLE: dict[str, Any] = {"warehouse_conn_id": "warehouse", "table": "products", "reuse_from": ("warehouse", "products")}


class Enriched(BaseModel):
    """What the shop shows beside a product."""

    category: Literal["clothing", "home", "kitchen", "sports", "other"]
    material: str | None
    is_gift: bool
    teaser: str


def catalogue(day: pendulum.Date) -> dict[str, str]:
    """Make up a catalogue: each day brings two products, and three of those before are described anew."""
    products: dict[str, str] = {}
    for past in range((day - FIRST_DAY).days + 1):
        chance = random.Random(past)  # noqa: S311
        changed = chance.sample([*products], 3) if products else [f"sku-{n}" for n in range(30)]
        for sku in [*changed, f"sku-{past}a", f"sku-{past}b"]:
            products[sku] = f"{chance.choice(KINDS)}, {chance.choice(TRAITS)}, {chance.randint(5, 900)}.95 €"
    return products


@dag(schedule="0 2 * * *", start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False, tags=["claude-batch"])
def incremental_enrichment() -> None:
    """Answers of before are taken as they are, so that a night pays only for what is new or changed."""

    @task(show_return_value_in_logs=False)
    def build_requests(logical_date: Any = None) -> list[dict[str, Any]]:
        asked = {sku: [{"role": "user", "content": text}] for sku, text in catalogue(logical_date.date()).items()}
        return [{"custom_id": sku, "params": {"messages": messages}} for sku, messages in asked.items()]

    @task
    def publish(receipt: Any) -> dict[str, Any]:
        sql = "SELECT category, count(*) FROM products_current WHERE category IS NOT NULL GROUP BY category"
        shown = dict(BaseHook.get_hook("warehouse").get_records(sql))
        return {**shown, "asked anew": receipt["requests"], "taken as they were": receipt.get("reused", 0)}

    enriched = claude_batch("enriched", requests=build_requests(), defaults=DEFAULTS, columns=Enriched, **TABLE)
    publish(enriched.output)


incremental_enrichment()
