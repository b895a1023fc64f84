"""A Plan -> tables in the terminal."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from puna.pipeline.units import show_bytes, show_count, show_duration, show_usd
from puna.planning.plan.advice import Plan
from puna.planning.plan.arithmetic import Machine, ServicePlan, show_devices
from puna.planning.plan.layout import LayoutPlan, explain_layout
from puna.planning.plan.training import TrainingPlan


def print_plan(report: Plan, console: Console) -> None:
    """Print the answer in a few lines, then tables: parameters, serving, training, assumptions."""
    for line in report.answer.lines:
        console.print(escape(line), highlight=False, soft_wrap=True)
    parts, device = report.parameters, report.machine.device
    console.print(f"\n[bold]{escape(report.model)}[/bold]: {parts.total:,} parameters")
    shares = {"embeddings": parts.embeddings, "attention": parts.attention, "MLP": parts.mlp, "norms": parts.norms}
    for name, count in (shares | ({"output": parts.head} if parts.head else {})).items():
        console.print(f"  {name:<10} {count:>17,}  {count / parts.total:7.2%}")
    usable = f"{show_bytes(device.memory_bytes)}, {show_bytes(report.machine.usable_bytes)} of it usable"
    console.print(f"\n[bold]On {show_devices(1, report.machine)}[/bold]: {usable}")
    service, training = report.service, report.training
    requests = f"{service.batch:,} request{'s' if service.batch > 1 else ''}"
    cached = f"{show_bytes(report.service_plans[0].kv_cache_bytes)} of KV cache in {service.kv_dtype}"
    console.print(f"\n[bold]Serving[/bold] {requests} of {service.context:,} tokens, {cached}")
    console.print(_service_table(report))
    kind = "all weights" if training.lora_rank is None else f"adapters of rank {training.lora_rank}"
    examples = f" in examples of {training.context:,}" if training.context < training.batch_tokens else ""
    batch = f"batches of {training.batch_tokens:,}{examples}"
    console.print(f"\n[bold]Training[/bold] {kind} on {training.tokens:,} tokens, {batch}")
    console.print(_training_table(report))
    if report.layout:
        _print_layout(report.layout, console)
    console.print()
    for line in report.advice:
        console.print(f"[yellow]{line}[/yellow]")
    console.print("[dim]Assumed:[/dim]")
    for line in report.assumptions:
        console.print(f"[dim]- {line}[/dim]")


def _service_table(report: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True, pad_edge=False)
    columns = ["weights", "size", "devices"]
    has_speeds = report.machine.device.bfloat16_flops_per_second is not None
    columns += ["prefill/s", "decode/s"] if has_speeds else []
    has_prices = has_speeds and report.machine.device.price_usd_per_hour is not None
    columns += ["$/M in", "$/M out"] if has_prices else []
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right", no_wrap=True)
    for plan in report.service_plans:
        name = f"stored: {plan.dtype}" if plan.dtype == report.stored_dtype else plan.dtype
        speeds = [show_count(plan.prefill_tokens_per_second), show_count(plan.decode_tokens_per_second)]
        prices = [show_usd(plan.prefill_usd_per_million_tokens), show_usd(plan.decode_usd_per_million_tokens)]
        cells = [name, show_bytes(plan.weights_bytes), _needed(plan, report.machine)]
        table.add_row(*cells, *(speeds if has_speeds else []), *(prices if has_prices else []))
    return table


def _training_table(report: Plan) -> Table:
    training, result = report.training, report.training_plan
    rounded = result.rounded_weights_bytes
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = [
        ("weights", show_bytes(result.weights_bytes)),
        ("AdamW's two moments", show_bytes(result.moments_bytes)),
        ("gradients", show_bytes(result.gradients_bytes)),
        *([("weights rounded to bfloat16", show_bytes(rounded))] if rounded else []),
        (f"activations in {training.precision}", show_bytes(result.activations_bytes)),
        ("logits", show_bytes(result.logits_bytes)),
        ("[bold]most at a time[/bold]", f"[bold]{show_bytes(result.peak_bytes)}[/bold]"),
        ("devices", _needed(result, report.machine)),
        ("FLOPs", f"{result.total_flops:.1e}"),
    ]
    rows += [("time", show_duration(result.seconds))] if result.seconds is not None else []
    rows += [("cost", show_usd(result.usd))] if result.usd is not None else []
    for row in rows:
        table.add_row(*row)
    return table


def _print_layout(layout: LayoutPlan, console: Console) -> None:
    console.print(f"\n[bold]Divided[/bold] between {layout.num_devices:,}: {layout}")
    parts = {
        "weights": layout.weights_bytes,
        "moments": layout.moments_bytes,
        "gradients": layout.gradients_bytes,
        "gathered weights": layout.gathered_bytes,
        "activations": layout.activations_bytes,
        "logits": layout.logits_bytes,
    }
    listed = ", ".join(f"{name} {show_bytes(size)}" for name, size in parts.items())
    console.print(f"  {show_bytes(layout.total_bytes)} on each: {listed}")
    for line in explain_layout(layout):
        console.print(f"  {line}")


def _needed(result: ServicePlan | TrainingPlan, machine: Machine) -> str:
    if machine.num_devices is None:
        return f"{result.num_devices_needed:,}"
    return f"{machine.num_devices:,}" if result.fits else "[red]too large[/red]"
