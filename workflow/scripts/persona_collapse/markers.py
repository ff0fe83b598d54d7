def score(c, marker="[ZLT]"):
    c=c.copy(); c["hit"]=c["text"].str.contains(marker,case=False,regex=False); return c
def rates(s):
    return s.groupby("persona",sort=False).agg(n=("hit","size"),hits=("hit","sum"),rate=("hit","mean")).reset_index()
