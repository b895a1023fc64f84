"""Everyday words, for long sentences about nothing in particular. Data."""

# fmt: off
THINGS = (
    "account", "action", "address", "agency", "agreement", "animal", "answer", "area", "arm", "article", "author",
    "bank",
    "bar", "basis", "bed", "board", "body", "book", "border", "box", "branch", "bridge", "building", "camera",
    "campaign",
    "car", "card", "case", "cell", "centre", "chair", "change", "chapter", "choice", "church", "circle", "city",
    "class",
    "client", "coast", "colour", "comment", "company", "computer", "concert", "condition", "content", "copy", "corner",
    "country", "court", "crew", "culture", "cup", "database", "decision", "degree", "device", "dinner", "direction",
    "door",
    "drawing", "dream", "edge", "effect", "election", "engine", "environment", "event", "evidence", "example", "expert",
    "factory", "farm", "feature", "field", "figure", "file", "film", "finger", "fire", "floor", "flower", "food",
    "forest",
    "function", "game", "gate", "glass", "goal", "government", "group", "hand", "harbour", "head", "history",
    "hospital",
    "house", "idea", "image", "industry", "interest", "interview", "island", "issue", "item", "job", "journey",
    "kitchen",
    "lake", "language", "law", "leader", "letter", "level", "library", "line", "list", "machine", "map", "market",
    "material",
    "measure", "medicine", "message", "method", "model", "moment", "motor", "mountain", "museum", "music", "network",
    "note",
    "number", "object", "office", "opinion", "order", "page", "paper", "park", "partner", "pattern", "payment",
    "person",
    "picture", "plan", "plane", "plant", "plate", "point", "policy", "position", "post", "power", "practice", "problem",
    "process", "product", "program", "project", "question", "railway", "reason", "record", "region", "report",
    "request",
    "result", "river", "road", "rule", "scene", "school", "science", "screen", "season", "section", "service", "ship",
    "shop",
    "signal", "site", "skill", "society", "song", "source", "space", "staff", "stage", "station", "stone", "store",
    "story",
    "street", "student", "study", "subject", "summary", "surface", "system", "table", "task", "teacher", "text",
    "theory",
    "ticket", "tool", "tower", "town", "trade", "train", "tree", "trip", "type", "unit", "user", "valley", "version",
    "village", "visit", "voice", "wall", "water", "weather", "window", "winner", "witness", "work", "worker", "world",
)
QUALITIES = (
    "able", "active", "actual", "ancient", "average", "basic", "better", "big", "black", "blue", "bright", "broad",
    "brown",
    "busy", "careful", "central", "certain", "clean", "clear", "cold", "common", "complete", "complex", "current",
    "daily",
    "dark", "deep", "different", "difficult", "digital", "direct", "double", "early", "eastern", "easy", "empty",
    "entire",
    "equal", "exact", "famous", "federal", "final", "fine", "first", "foreign", "formal", "free", "fresh", "full",
    "future",
    "general", "global", "golden", "good", "great", "green", "happy", "hard", "heavy", "high", "human", "important",
    "individual", "internal", "key", "large", "last", "legal", "light", "little", "local", "long", "loud", "low",
    "main",
    "major", "medical", "modern", "monthly", "narrow", "national", "natural", "new", "next", "normal", "northern",
    "official",
    "old", "online", "open", "original", "past", "personal", "physical", "plain", "popular", "private", "proper",
    "public",
    "quick", "quiet", "rare", "ready", "real", "recent", "red", "regular", "rich", "right", "round", "royal", "second",
    "senior", "serious", "sharp", "short", "silver", "similar", "simple", "single", "slow", "small", "social", "soft",
    "southern", "special", "standard", "strong", "sudden", "technical", "thick", "third", "tiny", "total", "typical",
    "unusual", "upper", "urban", "useful", "usual", "various", "warm", "weekly", "western", "white", "whole", "wide",
    "wild",
    "wooden", "wrong", "yellow", "young",
)
DEEDS = (
    "accepts", "adds", "affects", "allows", "answers", "became", "began with", "brings", "builds", "calls", "carries",
    "changed", "collects", "compares", "connects", "contains", "controls", "covers", "created", "crossed", "describes",
    "drew", "explains", "fills", "follows", "found", "gave", "guides", "helps", "holds", "improves", "includes",
    "joined",
    "keeps", "knows", "leads to", "left", "lists", "lost", "made", "measures", "meets", "moved", "needs", "offers",
    "opens",
    "passes", "placed", "presents", "protects", "provides", "reached", "reads", "receives", "replaced", "requires",
    "returned",
    "runs", "saw", "serves", "shares", "shows", "started", "stopped", "supports", "teaches", "tests", "took",
    "turned into",
    "understands", "uses", "visits", "was part of", "watches", "won", "works with", "wrote",
)
LINKS = (
    "because", "although", "and", "while", "so that", "but", "until", "when", "if", "as", "since", "which means that",
)
PLACES = (
    "in", "near", "behind", "under", "with", "without", "for", "from", "beside", "above", "through",
    "of", "on", "after",
)
ARTICLES = ("the", "the", "the", "a", "this", "our", "your", "their", "every", "each", "any", "another", "one", "some")
# The kind of a value, and how a sentence gives it.
MENTIONS = (
    ("amount", "for {v}"), ("date", "on {v}"), ("date", "by {v}"), ("time", "at {v}"), ("duration", "within {v}"),
    ("duration", "for {v}"), ("count", "with {v} others"), ("person", "with {v}"), ("person", "as {v} said"),
    ("place", "at {v}"), ("identifier", "under number {v}"), ("identifier", "in room {v}"), ("email", "(write to {v})"),
    ("web", "(see {v})"), ("phone", "(call {v})"), ("percent", "by {v}"), ("year", "in {v}"), ("year", "since {v}"),
)
# fmt: on
QUESTIONS = (
    "What does the page say about the {k}?",
    "What does the page say about the {k}?",
    "What about the {k}?",
    "Tell me about the {k}.",
    "What is said about the {k}?",
    "What do you know about the {k}?",
    "Can you tell me more about the {k}?",
    "I have a question about the {k}.",
    "the {k}?",
)
TYPED_QUESTIONS = {
    "amount": ("How much is named for the {k}?", "How much money is it for the {k}?"),
    "date": ("When is it for the {k}?", "Which date is given for the {k}?"),
    "time": ("At what time is it for the {k}?",),
    "duration": ("How long is it for the {k}?", "How much time is given for the {k}?"),
    "count": ("How many are named for the {k}?", "What number is given for the {k}?"),
    "person": ("Who is named with the {k}?", "Who is it for the {k}?"),
    "place": ("Where is it for the {k}?", "Which address is given for the {k}?"),
    "identifier": ("Which number is given for the {k}?",),
    "email": ("Which e-mail address is given for the {k}?", "Where can I write about the {k}?"),
    "web": ("Which website is given for the {k}?", "Where online is the {k}?"),
    "phone": ("Which phone number is given for the {k}?", "Whom can I call about the {k}?"),
    "percent": ("How many percent are named for the {k}?",),
    "year": ("Which year is given for the {k}?", "In which year was it for the {k}?"),
}
# Talk without a page and without a name.
BARE_REPLIES = {
    "greeting": ("Hello! I am an assistant, a computer program. How can I help you?", "assistant"),
    "who": ("I am an assistant: a computer program, not a human.", "program"),
    "thanks": ("You're welcome! Is there anything else I can do for you?", "welcome"),
    "bye": ("Goodbye! Have a nice day.", "goodbye"),
    "page": ("I cannot know that: I have no page to read. Please give me one.", "no page"),
}
BARE_SYSTEMS = ("", "", "", "You are a helpful assistant.", "You are an assistant.", "You are a friendly assistant.")
