"""The view on a terminal: draws the lines, and takes the keys. What takes time is done in threads, which tell it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

from vllm_chill.api.status import ProxyStatus, TargetStatus
from vllm_chill.cli.asking import Proxy, Told
from vllm_chill.cli.feed import Away, Heard, follow_aside
from vllm_chill.cli.top.deeds import Deed, output_of
from vllm_chill.cli.top.lines import Line, Look, plain, text_of
from vllm_chill.cli.top.summary import Savings, savings_of, summary, words_of_away
from vllm_chill.cli.top.table import SORTS, aged, details, heading, name_of, question, row, sorted_by
from vllm_chill.errors import AskFailed, ChillError

_TICK_SECONDS = 1.0
_SAVINGS_SECONDS = 30.0
_OUTPUT_SECONDS = 2.0
_SAID_SECONDS = 8.0
_STYLES = {
    Look.PLAIN: "",
    Look.FAINT: "dim",
    Look.STRONG: "bold",
    Look.GOOD: "ansi_green",
    Look.BUSY: "ansi_yellow",
    Look.BAD: "ansi_red bold",
}


class NewsMessage(Message):
    """What was heard of the proxy: how it is, that it is away, or why it will not answer."""

    def __init__(self, heard: Heard | ChillError) -> None:
        super().__init__()
        self.heard = heard


class SavingsMessage(Message):
    """What was saved."""

    def __init__(self, savings: Savings) -> None:
        super().__init__()
        self.savings = savings


class SaidMessage(Message):
    """What the proxy said to what was asked of it."""

    def __init__(self, text: str, look: Look) -> None:
        super().__init__()
        self.line: Line = ((plain(text), look),)


class OutputMessage(Message):
    """The last lines that an engine wrote."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines


class Question(ModalScreen[bool]):
    """A question with yes and no; whatever is not yes is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,q,enter,escape", "answer(False)", "No"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="question"):
            yield Static(Content(self._text))
            yield Static(Content("y: yes   n: no"), id="answers")

    def action_answer(self, is_yes: bool) -> None:
        self.dismiss(is_yes)


class Details(Screen[None]):
    """All that is told of one target, and the last lines of its engine's output."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,left", "app.pop_screen", "Back", key_display="esc"),
    ]

    def __init__(self, proxy: Proxy, target: str) -> None:
        super().__init__()
        self._proxy = proxy
        self.target = target
        self._asked: TargetStatus | None = None
        self._output: list[str] = []
        self._left = threading.Event()

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=True):
            yield Static(id="details")
        yield Static(id="said")
        yield Footer(compact=True, show_command_palette=False)

    def on_unmount(self) -> None:
        self._left.set()

    def show(self, target: TargetStatus | None) -> None:
        """Show the target as it is now; None if it is no more."""
        if target is not None and self._asked is None:
            self._asked = target
            threading.Thread(target=self._read_output, args=(target,), name="output", daemon=True).start()
        width = max(20, self.query_one(VerticalScroll).scrollable_content_region.width)
        gone: list[Line] = [(("It is no more.", Look.BAD),)]
        lines = gone if target is None else details(target, self._output, width)
        self.query_one("#details", Static).update(_content(lines))

    def on_output_message(self, message: OutputMessage) -> None:
        self._output = message.lines

    def _read_output(self, target: TargetStatus) -> None:
        while not self._left.is_set():
            lines = output_of(self._proxy, target)
            if lines is None:
                return
            self.post_message(OutputMessage(lines))
            self._left.wait(_OUTPUT_SECONDS)


class Targets(OptionList):
    """The targets, of which one is selected."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Details"),
        Binding("up,k", "cursor_up", "Up", show=False),
        Binding("down,j", "cursor_down", "Down", show=False),
    ]

    def show(self, rows: list[tuple[str, Content]]) -> None:
        """Show these rows, by their targets; what was selected stays so, where it is still there."""
        if [name for name, _ in rows] == [option.id for option in self.options]:
            for index, (_, content) in enumerate(rows):
                if self.get_option_at_index(index).prompt != content:
                    self.replace_option_prompt_at_index(index, content)
            return
        selected, place, top = self.selected, self.highlighted or 0, self.scroll_offset.y
        self.set_options(Option(content, id=name) for name, content in rows)
        names = [name for name, _ in rows]
        self.highlighted = names.index(selected) if selected in names else min(place, len(rows) - 1) if rows else None
        self.scroll_to(y=top, animate=False)
        self.scroll_to_highlight()

    @property
    def selected(self) -> str | None:
        """The target that is selected."""
        return None if self.highlighted_option is None else self.highlighted_option.id


class Top(App[None]):
    """A live view of one proxy. `failed` is why it ended, where it ended by itself."""

    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    #head { height: auto; max-height: 40%; }
    #heading { height: auto; text-style: bold; }
    #said { height: auto; max-height: 30%; }
    Targets, Targets:focus {
        height: 1fr; border: none; padding: 0; background: ansi_default; background-tint: transparent;
        scrollbar-size-vertical: 1;
    }
    Targets > .option-list--option { padding: 0; }
    Targets > .option-list--option-hover { background: ansi_default; }
    Targets > .option-list--option-highlighted, Targets:focus > .option-list--option-highlighted {
        background: ansi_default; color: ansi_default; text-style: none;
    }
    VerticalScroll { height: 1fr; scrollbar-size-vertical: 1; }
    Question { align: center middle; background: transparent; }
    #question { width: auto; max-width: 90%; height: auto; border: solid ansi_yellow; padding: 0 1; }
    #question Static { width: auto; max-width: 100%; height: auto; }
    #answers { margin-top: 1; text-style: bold; }
    Footer { background: ansi_default; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("w", "wake", "Wake"),
        Binding("z", "sleep", "Sleep"),
        Binding("s", "sort", "Sort"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    def __init__(
        self, proxy: Proxy, sort: str = "name", today: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.failed: ChillError | None = None
        self._proxy = proxy
        self._sort = sort
        self._today = today
        self._status: ProxyStatus | None = None
        self._heard_at = 0.0
        self._away: str | None = None
        self._savings: Savings | None = None
        self._said: Line = ()
        self._said_at = 0.0
        self._over = threading.Event()

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="heading")
        yield Targets(markup=False)
        yield Static(id="said")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self._draw()
        self.set_interval(_TICK_SECONDS, self._draw)
        self._over = follow_aside(self._proxy, lambda heard: self._tell(NewsMessage(heard)))
        threading.Thread(target=self._read_savings, name="savings", daemon=True).start()

    def on_unmount(self) -> None:
        self._over.set()

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self._draw)

    def on_news_message(self, message: NewsMessage) -> None:
        match message.heard:
            case ChillError() as error:
                self.failed = error
                self.exit()
            case Away() as gone:
                self._away = gone.reason
            case Told(status):
                self._status, self._heard_at, self._away = status, time.monotonic(), None
        self._draw()

    def on_savings_message(self, message: SavingsMessage) -> None:
        self._savings = message.savings

    def on_said_message(self, message: SaidMessage) -> None:
        self._said, self._said_at = message.line, time.monotonic()
        self._draw()

    def on_option_list_option_highlighted(self, _: OptionList.OptionHighlighted) -> None:
        self._draw()

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        if message.option_id is not None:
            self.push_screen(Details(self._proxy, message.option_id), callback=lambda _: self._draw())
            self.call_after_refresh(self._draw)

    def action_sort(self) -> None:
        """Sort by what comes next."""
        names = list(SORTS)
        self._sort = names[(names.index(self._sort) + 1) % len(names)]
        self._say(f"Sorted by {self._sort}.")
        self._draw()

    def action_wake(self) -> None:
        """Wake the selected target."""
        if (target := self._selected()) is not None:
            self._do(Deed.wake(target))

    def action_sleep(self) -> None:
        """Put the selected target to sleep, once that was asked."""
        if (target := self._selected()) is None or isinstance(self.screen, Question):
            return

        def answered(is_yes: bool | None) -> None:
            if is_yes:
                self._do(Deed.sleep(target))

        self.push_screen(Question(question(target)), answered)

    def _selected(self) -> TargetStatus | None:
        screen = self.screen
        if isinstance(screen, Details):
            return self._find(screen.target)
        if isinstance(screen, Question):
            return None
        return self._find(self.query_one(Targets).selected)

    def _find(self, name: str | None) -> TargetStatus | None:
        targets = () if self._status is None else self._status.targets
        return next((target for target in targets if target.target == name), None)

    def _do(self, deed: Deed) -> None:
        self._say(deed.beginning)

        def run() -> None:
            try:
                deed.ask(self._proxy)
                said, look = deed.end, Look.GOOD
            except AskFailed as failed:
                said, look = failed.message, Look.BAD
            self._tell(SaidMessage(said, look))

        threading.Thread(target=run, name="deed", daemon=True).start()

    def _say(self, text: str) -> None:
        self._tell(SaidMessage(text, Look.PLAIN))

    def _tell(self, message: Message) -> None:
        if self.is_running:
            self.post_message(message)

    def _read_savings(self) -> None:
        while not self._over.is_set():
            if (savings := savings_of(self._proxy)) is not None:
                self._tell(SavingsMessage(savings))
            self._over.wait(_SAVINGS_SECONDS)

    def _draw(self) -> None:
        """Show what is known, with times that go on for as long as the proxy is heard."""
        screen = self.screen_stack[0] if self.screen_stack else None
        if screen is None or not screen.is_mounted:
            return
        width = max(20, self.size.width - 1)  # the last column is the scroll bar's
        if time.monotonic() - self._said_at > _SAID_SECONDS:
            self._said = ()
        for shown in self.screen_stack:
            for said in shown.query("#said").results(Static):
                said.update(_content([self._said] if self._said else []))
        url, age = self._proxy.url, time.monotonic() - self._heard_at
        away: list[Line] = []
        if self._away is not None:
            away = words_of_away(self._away, None if self._status is None else age, width)
            age = 0.0
        if self._status is None:
            lines = [((f"Asking {url} …", Look.STRONG),), *away]
        else:
            lines = summary(self._status, url, width, self._savings, self._today(), away)
        screen.query_one("#head", Static).update(_content(lines))
        status = self._status
        head = heading(width) if status is not None and status.targets else None
        columns = screen.query_one("#heading", Static)
        columns.update(_content([(), head] if head is not None else [()]))
        if status is None:
            return
        targets = [aged(target, age) for target in sorted_by(self._sort, status.targets)]
        rows = screen.query_one(Targets)
        selected = rows.selected
        rows.show(
            [
                (one.target, _content(row(one, status, width), selected_width=width if one.target == selected else 0))
                for one in targets
            ]
        )
        if isinstance(self.screen, Details):
            one = self.screen.target
            self.screen.show(next((target for target in targets if target.target == one), None))
        self.title = name_of(targets[0]) if len(targets) == 1 else "vllm-chill"


def _content(lines: list[Line], *, selected_width: int = 0) -> Content:
    """Lines as they are drawn; the first one of what is selected is so from one side to the other. Nothing in them is
    markup.
    """
    parts: list[str | tuple[str, str]] = []
    for number, line in enumerate(lines):
        if number:
            parts.append("\n")
        if selected_width and not number:
            # Not by the list's own style for it, which knows colours only.
            parts.append((text_of(line).ljust(selected_width), "bold reverse"))
        else:
            parts += [(text, _STYLES[look]) for text, look in line]
    return Content.assemble(*parts)
