from alignkit import RewardSource, hookimpl


class ShortAnswers(RewardSource):
    def score(self, groups):
        return [[-len(text.split()) for text in group.responses] for group in groups]


@hookimpl
def register_reward_sources(register):
    register("short-answers", ShortAnswers)
