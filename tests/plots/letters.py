"""Are all letters of a figure inside it? Those that are really drawn: ticks out of view are not."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def watch_letters(monkeypatch):
    """A function figure -> texts that stick out of it."""
    drawn = []
    draw = Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, *args: (drawn.append(text), draw(text, *args))[1])

    def clipped(figure):
        FigureCanvasAgg(figure).draw()
        frame, texts = figure.bbox.padded(1.0), {id(t): t for t in drawn if t.figure is figure and t.get_text().strip()}
        assert texts, "a figure without a letter proves nothing"
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts.values()]
        return [
            text
            for text, box in boxes
            if box.x0 < frame.x0 or box.y0 < frame.y0 or box.x1 > frame.x1 or box.y1 > frame.y1
        ]

    return clipped
