"""The runs that a scenario means: one for each prefix of a prompt that asks for it."""

from warehouse.scenario import Scenario


def at_each_message(scenario: Scenario) -> list[Scenario]:
    """The scenarios to run: one for each prefix of a prompt that asks for it, else this one."""
    plain = [prompt for prompt in scenario.prompt if not prompt.run_at_each_message]
    rest = [scenario.model_copy(update={"prompt": plain})] if plain else []
    return rest + [
        _prefix(scenario, i, k)
        for i, prompt in enumerate(scenario.prompt)
        if prompt.run_at_each_message
        for k in range(len(prompt.messages or []))
    ]


def _prefix(scenario: Scenario, i: int, k: int) -> Scenario:
    """The scenario of one prompt, up to message k and named after it."""
    prompt = scenario.prompt[i]
    messages = (prompt.messages or [])[: k + 1]
    short = prompt.model_copy(update={"messages": messages, "run_at_each_message": False})
    name = f"{scenario.name}-{'' if len(scenario.prompt) == 1 else f'p{i:02d}'}m{k:02d}"
    return scenario.model_copy(update={"name": name, "prompt": [short]})
