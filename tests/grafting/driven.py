"""A mixer with its peers and its state, driven as a training drives it."""

from kgraft.grafting import Moment, Peers


class Driven:
    def __init__(self, mixer, models, last=None):
        self.mixer = mixer
        self.peers = Peers(models, mixer.plan(models))
        self.state = mixer.init(self.peers, last)

    def step(self, number):
        if self.mixer.between_steps:
            self._apply(Moment(step=number, ends_epoch=False))

    def epoch(self, number):
        if self.mixer.due(Moment(epoch=number)):
            self._apply(Moment(epoch=number))

    def finish(self):
        self.state = self.mixer.finish(self.peers, self.state)

    def _apply(self, moment):
        self.state, _ = self.mixer.apply(self.peers, self.state, moment)
