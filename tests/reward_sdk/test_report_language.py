"""Statements as radiologists write them, and what the rule labeler makes of each."""

from reward_sdk.models.rule_labeler import label_reports

NAMES = {
    "CM": "Cardiomegaly",
    "EF": "Pleural Effusion",
    "PT": "Pneumothorax",
    "ED": "Edema",
    "CO": "Consolidation",
    "PN": "Pneumonia",
    "AT": "Atelectasis",
    "OP": "Lung Opacity",
    "LL": "Lung Lesion",
    "FR": "Fracture",
    "SD": "Support Devices",
    "EC": "Enlarged Cardiomediastinum",
    "PO": "Pleural Other",
}


def said(text: str) -> str:
    """The labels that are not blank, as in "EF1 PT0"."""
    (labels,) = label_reports([text])
    found = ((key, labels[name]) for key, name in NAMES.items())
    return " ".join(f"{key}{label}" for key, label in found if label is not None)


def check(cases: dict[str, str]) -> None:
    assert {text: said(text) for text in cases} == cases


LINES = {
    "No pneumothorax\nLeft pleural effusion": "EF1 PT0",
    "no pneumothorax\nleft pleural effusion": "EF1 PT0",
    "NO PNEUMOTHORAX\nLEFT PLEURAL EFFUSION": "EF1 PT0",
    "- No pneumothorax\n- Left pleural effusion": "EF1 PT0",
    "* No pneumothorax\n* Left pleural effusion": "EF1 PT0",
    "• No pneumothorax • Left pleural effusion": "EF1 PT0",
    "1) No pneumothorax 2) Left pleural effusion": "EF1 PT0",
    "1. No pneumothorax 2. Left pleural effusion": "EF1 PT0",
    "#1 No pneumothorax #2 Left pleural effusion": "EF1 PT0",
    "(1) No pneumothorax\n(2) Left pleural effusion": "EF1 PT0",
    "a) No pneumothorax\nb) Left pleural effusion": "EF1 PT0",
    "**Pleura:** No pneumothorax **Lungs:** Consolidation at the right base": "PT0 CO1",
    "**Lungs** No consolidation\n**Pleura** Left effusion": "EF1 CO0",
    "Lungs: No consolidation Heart: Enlarged": "CM1 CO0",
    "Lungs: No consolidation. Heart: Enlarged.": "CM1 CO0",
    "lungs: no consolidation heart: enlarged": "CM1 CO0",
    "LUNGS: No consolidation\nHEART: Enlarged": "CM1 CO0",
    "The lungs are clear without\nconsolidation.": "CO0 OP0",
    "There is no focal consolidation, pleural effusion, pneumothorax, or\npulmonary "
    "edema. The heart is normal.": "CM0 EF0 PT0 ED0 CO0",
    "There is no evidence of focal airspace consolidation, pneumothorax\nor "
    "effusion.": "EF0 PT0 CO0",
    "There is no evidence of pneumonia, focal consolidation or new\nPneumothorax": "PT0 CO0 PN0",
    "In comparison with the study of ___, there is little change and no evidence "
    "of\nacute focal pneumonia.": "PN0",
    "No pneumothorax\nNo effusion\nModerate edema": "EF0 PT0 ED1",
    "FINDINGS:\nNo pneumothorax\nLeft pleural effusion\n\nIMPRESSION:\nEffusion": "EF1 PT0",
    "INDICATION: rule out pneumonia.\nFINDINGS: No effusion.": "EF0",
    "HISTORY: Pneumothorax.\n\nFINDINGS: Clear lungs.": "CO0 OP0",
    "No consolidation | Left effusion": "EF1 CO0",
    "No acute fracture\nRight PICC tip in the SVC\nCardiomegaly": "CM1 FR0 SD1",
}


def test_a_line_or_an_item_without_a_full_stop_is_a_statement_and_wrapped_prose_is_not():
    check(LINES)


UNCHANGED = {
    "There is no relevant change in the left effusion.": "EF1",
    "No enlargement of the known nodule.": "LL1",
    "No obvious change in the pneumothorax.": "PT1",
    "No major interval change in left effusion and atelectasis.": "EF1 AT1",
    "No further progression of the edema.": "ED1",
    "No marked worsening of consolidation.": "CO1",
    "No overall improvement in edema.": "ED1",
    "No resolution of the effusion.": "EF1",
    "There has been no other change in the opacities.": "OP1",
    "The effusion has not significantly changed.": "EF1",
    "The effusion is not changed.": "EF1",
    "Without interval change in cardiomegaly.": "CM1",
    "No enlargement of the heart.": "CM0",
    "The heart is not enlarged.": "CM0",
    "No significant effusion.": "EF0",
    "No new consolidation.": "CO0",
    "No interval development of effusion.": "EF0",
    "No clearing of the opacity.": "OP1",
    "No change. No effusion.": "EF0",
    "Edema has not worsened.": "ED1",
    "Edema has not resolved.": "ED1",
    "No decrease in the size of the pneumothorax.": "PT1",
}


def test_no_change_is_no_denial():
    check(UNCHANGED)


FORMS = {
    "Pneumothorax: none; effusion: none; consolidation: right base": "EF0 PT0 CO1",
    "Pneumothorax: none, effusion: small": "EF1 PT0",
    "Heart: Enlarged.": "CM1",
    "Heart:Enlarged": "CM1",
    "Heart size: Enlarged.": "CM1",
    "Cardiac silhouette: mildly enlarged.": "CM1",
    "Heart: normal.": "CM0",
    "Heart size: Normal": "CM0",
    "Effusion: nil": "EF0",
    "Effusion: absent.": "EF0",
    "Effusion (none)": "EF0",
    "Effusion:none": "EF0",
    "Effusion - none": "EF0",
    "Effusion: No.": "EF0",
    "Nil effusion.": "EF0",
    "Pneumothorax: No; Effusion: Yes": "EF1 PT0",
    "Effusion = none": "EF0",
    "Mediastinum: widened": "EC1",
    "Pneumothorax: not seen. Pleural effusion: small left.": "EF1 PT0",
    "Lungs: Clear": "CO0 OP0",
    "Bones: intact": "FR0",
    "Pneumothorax: none Pleural effusion: none Consolidation: right base": "EF0 PT0 CO1",
}


def test_forms_are_read():
    check(FORMS)


GONE = {
    "The pneumothorax is no longer visible.": "PT0",
    "The effusion has disappeared.": "EF0",
    "Pneumothorax cannot be seen.": "PT0",
    "The effusion has partially resolved.": "EF1",
    "Nearly resolved effusion.": "EF1",
    "The edema has mostly resolved.": "ED1",
    "Incomplete resolution of the consolidation.": "CO1",
    "The effusion has cleared but a small amount remains.": "EF1",
    "The effusion has resolved with small residual.": "EF1",
    "Near-complete resolution of the edema.": "ED1",
    "Near complete clearing of edema": "ED1",
    "The pneumothorax has almost completely resolved.": "PT1",
    "Edema has largely cleared.": "ED1",
    "Pneumothorax has resolved, but effusion persists.": "EF1 PT0",
    "Interval resolution of edema.": "ED0",
    "Complete resolution of the effusion.": "EF0",
    "Resolving pneumonia.": "PN1",
    "Previously seen effusion has completely resolved.": "EF0",
    "The pneumothorax can no longer be seen.": "PT0",
    "The consolidation is not completely resolved.": "CO1",
    "Partial clearing of right opacity": "OP1",
    "The previous pneumothorax is gone.": "PT0",
    "Effusion is not visualized.": "EF0",
}


def test_what_is_gone_is_absent_and_what_is_partly_gone_is_there():
    check(GONE)


SHORT = {
    "w/o effusion": "EF0",
    "Clear lungs w/o effusion.": "EF0 CO0 OP0",
    "neg for pneumothorax": "PT0",
    "There isn't a pneumothorax.": "PT0",
    "There wasn't any effusion.": "EF0",
    "There aren't any effusions": "EF0",
    "Film doesn't show pneumothorax.": "PT0",
    "The film doesn’t show effusion": "EF0",
    "r/o pneumonia": "PN-1",
    "? pneumonia": "PN-1",
    "?pneumonia": "PN-1",
    "Pneumonia?": "PN-1",
    "Right basilar opacity, ?pneumonia": "PN-1 OP1",
    "Pneumonia? Left effusion.": "EF1 PN-1",
    "Opacity c/w pneumonia": "PN1 OP1",
    "Small effusion w/ atelectasis": "EF1 AT1",
    "+/- atelectasis": "AT-1",
    "Heart isn't enlarged": "CM0",
}


def test_short_forms_are_spelled_out():
    check(SHORT)


EXCLUDED = {
    "It is not possible to exclude pneumonia.": "PN-1",
    "Pneumonia must be excluded.": "PN-1",
    "Pneumothorax can't be excluded.": "PT-1",
    "Pneumonia should be excluded clinically.": "PN-1",
    "Pneumonia needs to be ruled out.": "PN-1",
    "Unable to exclude effusion.": "EF-1",
    "Effusion has been excluded.": "EF0",
    "Difficult to exclude a small effusion": "EF-1",
    "Pneumonia is unlikely.": "PN0",
    "Opacity unlikely to represent pneumonia.": "PN0 OP1",
    "Opacity is unlikely to be pneumonia.": "PN0 OP1",
    "Unlikely pneumonia.": "PN0",
    "Pneumonia unlikely given lack of fever.": "PN0",
    "Opacity, pneumonia unlikely": "PN0 OP1",
    "An opacity is seen, which is unlikely to reflect pneumonia.": "PN0 OP1",
    "Pneumonia is not excluded.": "PN-1",
    "Underlying pneumonia cannot entirely be excluded": "PN-1",
    "Pneumothorax is ruled out": "PT0",
    "A small effusion would be difficult to exclude.": "EF-1",
}


def test_to_be_excluded_is_uncertain_and_excluded_or_unlikely_absent():
    check(EXCLUDED)


SPELLING = {
    "PTX on the right": "PT1",
    "No PTX.": "PT0",
    "RLL PNA": "PN1",
    "ETT in place": "SD1",
    "NGT below the diaphragm": "SD1",
    "Pulmonary oedema": "ED1",
    "Left haemothorax": "EF1",
    "Hydropneumothorax": "EF1 PT1",
    "Effusions L > R": "EF1",
    "Bilateral efusions": "EF1",
    "Right pnuemothorax": "PT1",
    "Cardiomegally": "CM1",
    "Atelectisis": "AT1",
    "Atelectais at the bases": "AT1",
    "consoldation": "CO1",
    "penumonia": "PN1",
    "pulmonary edmea": "ED1",
    "infitrate": "OP1",
    "opacites": "OP1",
    "pneumonthorax": "PT1",
    "CHF": "ED-1",
    "Bibasilar ateletasis": "AT1",
    "pleural effuson": "EF1",
    "rib fractrue": "FR1",
}


def test_words_of_the_trade_and_misspellings_are_known():
    check(SPELLING)


SUBJECTS = {
    "Heart size, mediastinal contour and pulmonary vascularity are within normal "
    "limits.": "CM0 EC0",
    "The lungs, pleura and mediastinum are normal.": "CO0 OP0 EC0",
    "Heart, lungs, and mediastinum are unremarkable.": "CM0 CO0 OP0 EC0",
    "Heart is enlarged, mediastinum is normal.": "CM1 EC0",
    "Pneumothorax, effusion and consolidation are absent.": "EF0 PT0 CO0",
    "Effusion, pneumothorax: none": "EF0 PT0",
    "The heart size and mediastinal contours are normal.": "CM0 EC0",
    "The heart, hila and mediastinum appear normal.": "CM0 EC0",
    "Heart size is top normal, and there is mild edema.": "CM0 ED1",
    "Cardiac, mediastinal and hilar contours are normal.": "CM0 EC0",
    "Bones, soft tissues and lungs are normal": "CO0 OP0 FR0",
    "Heart size is not normal.": "",
}


def test_a_list_of_subjects_shares_one_statement():
    check(SUBJECTS)


PAST = {
    "History of pneumonia.": "",
    "Status post removal of the chest tube.": "SD0",
    "Old rib fractures.": "FR1",
    "History of CHF, now with edema.": "ED1",
    "No pneumothorax, small effusion.": "EF1 PT0",
    "No pneumothorax, effusion or edema.": "EF0 PT0 ED0",
    "No pneumothorax, and a small effusion.": "EF1 PT0",
}


def test_what_is_past_is_not_there_and_lists_turn_where_documented():
    check(PAST)


PHRASES = {
    "There is no evidence of acute cardiopulmonary process.": "",
    "Lungs are well expanded and clear.": "CO0 OP0",
    "Mild pulmonary vascular congestion without overt edema.": "ED-1",
    "Moderate cardiomegaly is unchanged.": "CM1",
    "No displaced rib fractures.": "FR0",
    "Interval removal of right IJ line.": "SD0",
    "Low lung volumes with bibasilar atelectasis.": "AT1",
    "Hilar and mediastinal contours are unremarkable.": "EC0",
    "Increased opacification in the right lung base concerning for pneumonia or "
    "aspiration.": "PN-1 OP1",
    "No pneumothorax identified after removal of left chest tube": "PT0 SD0",
    "Retrocardiac opacity likely atelectasis, though pneumonia cannot be excluded in "
    "the appropriate clinical setting.": "PN-1 AT-1 OP1",
    "Pulmonary edema has improved.": "ED1",
    "There is no longer evidence of pneumothorax": "PT0",
    "No pneumothorax or pleural effusion, but there is persistent opacity": "EF0 PT0 OP1",
    "No focal consolidation to suggest pneumonia": "CO0 PN0",
    "Heart is mildly enlarged with no edema": "CM1 ED0",
    "Cardiac silhouette remains enlarged.": "CM1",
    "The pneumothorax is not substantially changed.": "PT1",
    "No definite change in bibasilar opacities or effusions.": "EF1 OP1",
    "There has been no appreciable change in the size of the left pneumothorax.": "PT1",
    "Unchanged appearance of the right effusion, no pneumothorax.": "EF1 PT0",
    "Stable cardiomegaly, no effusion": "CM1 EF0",
    "No acute change. Stable effusion": "EF1",
    "Effusion has decreased but persists.": "EF1",
    "Pneumothorax has resolved.  Effusion remains.": "EF1 PT0",
    "Previously described consolidation is no longer evident.": "CO0",
    "Complete interval clearing of the right lower lobe consolidation.": "CO0",
    "Effusions have nearly completely resolved.": "EF1",
    "The effusion has not yet resolved": "EF1",
    "Neither effusion nor pneumothorax is seen.": "EF0 PT0",
    "Absence of pneumothorax.": "PT0",
    "Lungs are free of consolidation.": "CO0",
    "Lungs clear of consolidation.": "CO0",
    "There are no signs of heart failure.": "ED0",
    "Pneumonia is not suspected.": "PN0",
    "Pneumonia is considered unlikely.": "PN0",
    "Findings are unlikely due to pneumonia.": "PN0",
    "Pneumonia is felt to be unlikely.": "PN0",
    "It is unlikely that this represents pneumonia.": "PN0",
    "This is not typical for pneumonia.": "PN0",
    "Findings are not suggestive of edema.": "ED0",
    "Low suspicion for pneumonia.": "PN-1",
    "No suspicious nodules.": "LL0",
    "No pulmonary nodules or masses": "LL0",
    "Pneumothorax excluded.": "PT0",
    "Pneumothorax has been ruled out.": "PT0",
    "CT is recommended to exclude nodule.": "LL-1",
    "Consider pneumonia.": "PN-1",
    "Pneumonia is a consideration.": "PN-1",
    "Pneumonia in the differential": "PN-1",
    "Right chest tube has been removed.": "SD0",
    "Nasogastric tube has been removed. ETT is in place.": "SD1",
    "s/p removal of ETT": "SD0",
    "Prior history of CABG with pacemaker in place.": "SD1",
    "The heart is normal in size. The lungs are hyperinflated.": "CM0",
    "No cardiomegaly": "CM0",
    "There is no pneumothorax seen.": "PT0",
    "Pneumothorax: No evidence.": "PT0",
    "Effusion: not present": "EF0",
    "Effusion: None seen.": "EF0",
    "Effusion: None identified": "EF0",
    "Effusions: none bilaterally": "EF0",
    "Effusion: present": "EF1",
    "Cardiomegaly: yes": "CM1",
    "Cardiomegaly: mild": "CM1",
    "Lungs: no consolidation, effusion or pneumothorax.\nHeart: normal size.\nBones: "
    "no fracture": "CM0 EF0 PT0 CO0 FR0",
    "Findings:\n1. Cardiomegaly\n2. No edema\n3. Left effusion": "CM1 EF1 ED0",
    "Impression: 1. No acute process. 2. Small effusion.": "EF1",
    "-No effusion\n-Small pneumothorax": "EF0 PT1",
    "No evidence of pneumonia\nStable small right pneumothorax\nNo effusion": "EF0 PT1 PN0",
    "Slight decrease in right effusion without pneumothorax.": "EF1 PT0",
    "Effusion can not be excluded": "EF-1",
    "We can't exclude pneumonia": "PN-1",
    "Pneumonia, not excluded": "PN-1",
    "opacity ? atelectasis vs pneumonia": "PN-1 AT-1 OP1",
    "NO EFFUSION. PTX ON LEFT.": "EF0 PT1",
    "Heart and lungs are normal.": "CM0 CO0 OP0",
    "Heart size and pulmonary vascularity normal": "CM0",
    "The heart size, mediastinum, and hilar contours are stable.": "",
    "There is small, L>R, effusions": "EF1",
    "No pneumothroax. Cardiomegly.": "CM1 PT0",
    "No PTX/effusion": "EF0 PT0",
    "No effusion/pneumothorax/consolidation.": "EF0 PT0 CO0",
    "Effusion and/or atelectasis": "EF1 AT1",
    "Trace effusion vs. pleural thickening": "EF1 PO-1",
    "Right lung is clear, left lower lobe consolidation.": "CO1 OP0",
    "Lungs are clear except for left basilar atelectasis.": "CO0 AT1 OP0",
    "Other than cardiomegaly, no abnormality.": "CM1",
    "Aside from mild edema, the lungs are clear": "ED1 CO0 OP0",
    "No interval change in the moderate right pneumothorax.": "PT1",
    "No interval increase in effusion size": "EF1",
    "No evidence of worsening edema": "ED1",
    "No worsening of edema": "ED1",
    "No increasing effusion": "EF1",
    "Not enlarged heart": "CM0",
    "The mediastinum is not widened.": "EC0",
    "No mediastinal widening.": "EC0",
    "No enlargement of the cardiac silhouette": "CM0",
    "There is no increase in heart size.": "",
}


def test_phrases_of_reports_are_read():
    check(PHRASES)


ASIDES = {
    "COMPARISON: None.\nThere is a left pleural effusion.": "EF1",
    "TECHNIQUE: Portable AP.\n\nSmall left effusion. No pneumothorax.": "EF1 PT0",
    "INDICATION: Cough.\n\nCHEST, PA AND LATERAL: Left lower lobe pneumonia.": "PN1",
    "INDICATION: Cough.\n\nFRONTAL CHEST RADIOGRAPH: Left effusion.": "EF1",
    "INDICATION: Cough.\n\nLungs: Left lower lobe pneumonia.": "PN1",
    "INDICATION: Cough.\nIMPRESSION\nLeft lower lobe pneumonia.": "PN1",
    "HISTORY: cough\nFINDINGS\nLeft effusion\nIMPRESSION\nEffusion": "EF1",
    "Reason for exam: SOB\nFINDINGS AND IMPRESSION: Pulmonary edema": "ED1",
    "INDICATION: eval ETT\nFINDINGS/IMPRESSION: ETT 3 cm above the carina.": "SD1",
    "**Indication**: pneumonia\n\n**Findings**\nLungs are clear.": "CO0 OP0",
    "Indication: pneumonia Findings: No consolidation Impression: No pneumonia": "CO0 PN0",
    "Comparison: Prior from yesterday. Left effusion is larger.": "EF1",
    "EXAM: Chest x-ray. Left pneumothorax is seen.": "PT1",
}


def test_what_stands_behind_indication_and_its_like_is_left_out_and_nothing_else():
    check(ASIDES)


TURNS = {
    "No pneumothorax, new left lower lobe opacity.": "PT0 OP1",
    "No pneumothorax, large left effusion.": "EF1 PT0",
    "No pneumothorax, severe cardiomegaly.": "CM1 PT0",
    "No consolidation, extensive edema.": "ED1 CO0",
    "No pneumothorax, increased left effusion.": "EF1 PT0",
    "No pneumothorax, decreasing effusion.": "EF1 PT0",
    "No pneumothorax, worsening edema.": "PT0 ED1",
    "No pneumothorax, improved edema.": "PT0 ED1",
    "There is no pneumothorax, and the left pleural effusion has increased.": "EF1 PT0",
    "No pneumothorax, and bilateral pleural effusions have increased in size.": "EF1 PT0",
    "No pneumothorax, left pleural effusion has decreased.": "EF1 PT0",
    "No pneumothorax, left pleural effusion is slightly smaller.": "EF1 PT0",
    "No pneumothorax,left effusion is larger": "EF1 PT0",
    "There is no pneumothorax and the cardiac silhouette is enlarged.": "CM1 PT0",
    "No pneumothorax while the effusion is larger.": "EF1 PT0",
    "No pneumothorax whereas left effusion persists.": "EF1 PT0",
    "No consolidation in the left lower lobe, where atelectasis is seen.": "CO0 AT1",
    "Edema without cardiomegaly, effusions are small.": "CM0 EF1 ED1",
    "No consolidation, new effusion, or pneumothorax": "EF0 PT0 CO0",
    "No focal consolidation, large effusion or pneumothorax": "EF0 PT0 CO0",
    "No consolidation, large effusion, pneumothorax": "EF0 PT0 CO0",
    "No focal consolidation, pleural effusion, or pneumothorax is seen.": "EF0 PT0 CO0",
    "No effusion, pneumothorax, or edema is present. The heart is enlarged.": "CM1 EF0 PT0 ED0",
}


def test_a_list_of_denials_turns_where_something_is_said_of_an_item():
    check(TURNS)


AFTER = {
    "No pneumothorax after placement of chest tube.": "PT0 SD1",
    "No pneumothorax following left chest tube placement.": "PT0 SD1",
    "No pneumothorax status post right IJ line placement.": "PT0 SD1",
    "Interval removal of ETT and placement of tracheostomy tube.": "SD1",
    "Patient has had removal of right pleural drain, no appreciable right "
    "pneumothorax, or increase in pleural effusion.": "EF1 PT0 SD0",
}


def test_a_denial_or_a_removal_ends_where_something_else_begins():
    check(AFTER)


HEDGES = {
    "Effusion possible": "EF-1",
    "Edema probable.": "ED-1",
    "Pneumothorax suspected": "PT-1",
    "Pneumonia less likely": "PN-1",
    "Cardiomegaly: absent; edema: absent; pneumonia: possible": "CM0 ED0 PN-1",
    "Effusion: likely": "EF-1",
    "Effusion: questionable": "EF-1",
    "Effusion: equivocal": "EF-1",
    "Effusion: ?": "EF-1",
    "Pneumonia, cannot exclude": "PN-1",
    "In the right clinical setting, pneumonia should be considered.": "PN-1",
    "Coexisting infection is difficult to exclude.": "PN-1",
    "Please exclude pneumonia clinically": "PN-1",
    "Exclude pneumonia": "PN-1",
    "c/f PNA": "PN-1",
    "Aspiration or infection is in the differential.": "PN-1",
    "Pneumonia is a possibility": "PN-1",
    "Opacity, either atelectasis or pneumonia.": "PN-1 AT-1 OP1",
    "It is doubtful that this is pneumonia.": "PN-1",
    "Doubt pneumonia.": "PN-1",
    "Low likelihood of pneumonia.": "PN-1",
    "Pleural effusions if any are small.": "EF-1",
    "Pleural effusion, if present, is minimal.": "EF-1",
    "Pleural effusions small if any.": "EF-1",
    "pulmonary edema, if any, is minimal.": "ED-1",
    "Pneumothorax, if any, is tiny.": "PT-1",
    "Minimal if any effusion.": "EF-1",
    "Little or no pleural effusion.": "EF-1",
    "No more than mild edema.": "ED1",
}


def test_a_hedge_may_stand_behind_a_finding_or_in_a_form():
    check(HEDGES)


DENIALS = {
    "Can't see any effusion": "EF0",
    "Cannot see a pneumothorax": "PT0",
    "Unable to see an effusion": "EF0",
    "Chest x-ray fails to show pneumonia.": "PN0",
    "Findings exclude pneumothorax.": "PT0",
    "Nonvisualization of the pneumothorax.": "PT0",
    "Effusion is no more visible": "EF0",
    "Effusion completely drained.": "EF0",
    "The right pneumothorax has been evacuated.": "PT0",
    "The right IJ catheter has been withdrawn and is no longer present.": "SD0",
    "No increased interstitial markings.": "OP0",
    "No increased opacity": "OP0",
    "The pulmonary edema has resolved almost completely.": "ED1",
    "The effusion has resolved almost entirely.": "EF1",
    "Substantial clearing of the pulmonary edema.": "ED1",
    "Recommend follow-up to ensure resolution of the pneumonia.": "PN1",
    "No evidence of pneumothorax progression.": "PT1",
    "Pneumothorax: no evidence of pneumothorax.": "PT0",
    "Pneumothorax none, effusion small": "EF1 PT0",
    "No pneumothorax<br>Left pleural effusion": "EF1 PT0",
    "<ul><li>No pneumothorax</li><li>Left pleural effusion</li></ul>": "EF1 PT0",
    "No pneumothorax / Left pleural effusion": "EF1 PT0",
    "No pneumothorax -- left effusion persists": "EF1 PT0",
    "1.No pneumothorax 2.Left effusion": "EF1 PT0",
    "Heart/Mediastinum: Heart size enlarged.": "CM1",
    "Cardiac enlargement is noted.": "CM1",
    "The heart is again seen to be mildly enlarged.": "CM1",
    "Fluid in the minor fissure.": "EF1",
    "Empyema": "EF1",
    "Hemopneumothorax on the left": "EF1 PT1",
    "sm L eff": "EF1",
    "b/l eff R>L": "EF1",
    "Left lower lobe is collapsed.": "AT1",
    "Collapsed right upper lobe.": "AT1",
    "Fluid overload.": "ED-1",
    "Pulmonary vascular engorgement.": "ED-1",
    "without evidence of congestive failure": "ED0",
    "Lung cancer": "LL1",
    "Compression deformity of T8.": "FR1",
    "There is a skin fold simulating a pneumothorax.": "PT0",
}


def test_other_words_deny_and_other_forms_and_words_are_known():
    check(DENIALS)
