"""Hooks of ours on a model's modules, kept behind those of others."""

from typing import Any

from torch import nn


class OurHooks:
    """Our hooks on a model's modules, kept behind those of others.

    Attributes:
        handles: what removes them.
        others: whether there were hooks of others in the pass that runs.
    """

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.others = False
        self._counts: dict[nn.Module, int] = {}  # hooks of ours on each module
        #: A module's hooks, the id of one of ours among them, whether it is first.
        self._ours: list[tuple[Any, int, bool]] = []

    def put(
        self, module: nn.Module, *, pre: Any = None, output: Any = None, own: Any = None
    ) -> None:
        """Hook a module: before it runs, with what others made of its output, with its own."""
        if pre is not None:
            handle = module.register_forward_pre_hook(pre, with_kwargs=True)
            self.add(handle, module._forward_pre_hooks)
        if output is not None:
            self.add(module.register_forward_hook(output), module._forward_hooks)
        if own is not None:
            handle = module.register_forward_hook(own, prepend=True)
            self.add(handle, module._forward_hooks, begins=True)

    def add(self, handle: Any, hooks: Any, *, begins: bool = False) -> None:
        """Take charge of one of a module's hooks: its place is last, or first where it `begins`."""
        self.handles.append(handle)
        self._ours.append((hooks, handle.id, begins))

    def watch(self, model: nn.Module) -> None:
        """From now on, hooks that are more than ours are those of others."""
        ids = {handle.id for handle in self.handles}
        for module in model.modules():
            self._counts[module] = sum(
                key in ids for key in (*module._forward_pre_hooks, *module._forward_hooks)
            )

    def others_on(self, module: nn.Module) -> bool:
        """Whether others have hooks on a module that may change a tensor: transformers' do not."""
        count = len(module._forward_hooks) + len(module._forward_pre_hooks)
        if count <= self._counts.get(module, 0):
            return False
        ids = {handle.id for handle in self.handles}
        hooks = [*module._forward_pre_hooks.items(), *module._forward_hooks.items()]
        makers = [getattr(hook, "__module__", None) or "" for key, hook in hooks if key not in ids]
        return any(not maker.startswith("transformers.") for maker in makers)

    def look(self) -> None:
        """Before a pass: see whether others have hooks, and bring ours behind them again."""
        anywhere = (
            nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
        )
        self.others = bool(anywhere) or any(map(self.others_on, self._counts))
        if self.others:
            for hooks, key, begins in self._ours:
                hooks.move_to_end(key, last=not begins)

    def remove(self) -> None:
        """Take all of them off."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
